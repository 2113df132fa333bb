"""Training: the same model on any number of ranks, resumed anywhere; and what is refused."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline import train
from pipeline.base.errors import Stopped, UserError
from pipeline.base.files import write_json
from pipeline.compute.distributed import Ranks
from pipeline.config.load import load_step
from pipeline.flow.made_up import made_up
from pipeline.training import batch_size, checkpoint, weights_file
from pipeline.training.identity import identity
from pipeline.training.trainer import Trainer
from tests.conftest import ROOT, resolved, write_pack
from tests.on_ranks import train_on_ranks

SMALL = [
    "experiment=tiny",
    "model.channel_mult=[1]",
    "model.attention_at=[]",
    "model.dropout=0.2",
    "train.images=96",
    "train.batch=12",
    "train.lr=1e-4",
    "train.ema_halflife_images=50",
    "train.flip=true",
    "runtime.log_images=12",
    "runtime.checkpoint_images=24",
    "runtime.progress_seconds=1000",
]


def words(pack: Path, out: Path, *more: str) -> list[str]:
    return [*SMALL, f"data.path={pack}", f"out={out}", *more]


def run(pack: Path, out: Path, *more: str) -> tuple[dict[str, Tensor], list[dict]]:
    """Train in this process; the weights and the curve."""
    train.main(words(pack, out, *more))
    return outcome(out)


def outcome(out: Path) -> tuple[dict[str, Tensor], list[dict]]:
    weights = weights_file.load_weights(out / "weights.safetensors")
    rows = [json.loads(line) for line in (out / "curve.jsonl").read_text().splitlines()]
    return weights, rows


def torchrun(count: int, arguments: list[str]) -> subprocess.Popen:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={count}", "-m", "pipeline.train", *arguments]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Relative norm of the difference of two sets of weights."""
    flat = [torch.cat([w[name].double().flatten() for name in sorted(w)]) for w in (a, b)]
    return float((flat[0] - flat[1]).norm() / flat[0].norm())


def losses(rows: list[dict]) -> list[float]:
    return [row["loss"] for row in rows]


@pytest.fixture(scope="module")
def reference(pack: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple:
    """The run that all others must agree with: one process, one pass per step."""
    return run(pack, tmp_path_factory.mktemp("reference"))


# Everything about training that the reference does not use, at once. Groups of 4 are cut by
# micro-batches of 3.
ALL_AT_ONCE = [
    "train.times=edm_skew",
    "train.coupling=optimal_transport",
    "train.coupling_images=4",
    "train.lr_schedule=cosine",
    "train.lr_final=0.1",
    "train.weight_decay=0.1",
    "train.clip_grad_norm=0.05",
    "train.ema_rampup=0",
    "train.ema_halflife_images=[50,200]",
]


@pytest.fixture(scope="module")
def all_at_once(pack: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("all_at_once")
    run(pack, out, *ALL_AT_ONCE)
    return out


@pytest.fixture(scope="module")
def two_ranks(pack: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference and all at once by two ranks: folders `reference` and `all_at_once`."""
    out = tmp_path_factory.mktemp("two_ranks")
    runs = [
        words(pack, out / "reference"),
        words(pack, out / "all_at_once", *ALL_AT_ONCE, "runtime.micro_batch=3"),
    ]
    train_on_ranks(2, *runs)
    return out


def test_all_at_once_does_not_know_the_ranks(all_at_once: Path, two_ranks: Path) -> None:
    outs = (all_at_once, two_ranks / "all_at_once")
    weights = []
    for name in ("weights.safetensors", "weights-ema200.safetensors"):
        one, two = (weights_file.load_weights(out / name) for out in outs)
        assert difference(one, two) < 1e-5
        weights.append(one)
        about = weights_file.read_about(all_at_once / name)
        assert about.ema_halflife_images == (200 if "200" in name else 50)
    assert difference(*weights) > 1e-6
    for name in ("loss", "grad_norm", "lr"):
        one, two = ([row[name] for row in outcome(out)[1]] for out in outs)
        np.testing.assert_allclose(one, two, rtol=1e-4, err_msg=name)


def test_averages_do_not_touch_each_other(all_at_once: Path, pack: Path, tmp_path: Path) -> None:
    """Each is what it is alone, also over a resume."""
    alone = [*ALL_AT_ONCE[:-1], "train.ema_halflife_images=200"]
    weights, _ = run(pack, tmp_path, *alone)
    beside = weights_file.load_weights(all_at_once / "weights-ema200.safetensors")
    assert all(torch.equal(weights[name], beside[name]) for name in weights)
    for step in (8, 6):  # go on from step 6, and from step 4
        next(all_at_once.glob(f"checkpoints/*/step-*{step}.pt")).unlink()
        run(pack, all_at_once, *ALL_AT_ONCE)
        again = weights_file.load_weights(all_at_once / "weights-ema200.safetensors")
        assert all(torch.equal(again[name], beside[name]) for name in beside)


def test_the_rate_and_the_norm_are_those_of_the_last_step(all_at_once: Path) -> None:
    rows = outcome(all_at_once)[1]
    assert all(row["grad_norm"] > 0.05 for row in rows)  # before it was clipped
    cosine = [0.1 + 0.9 * (1 + np.cos(np.pi * max(12 * k - 64, 0) / 32)) / 2 for k in range(8)]
    rises = [min(1.0, 12 * (k + 1) / 64) for k in range(8)]
    expected = 1e-4 * np.array(cosine) * np.array(rises)
    np.testing.assert_allclose([row["lr"] for row in rows], expected)


def test_the_gradient_is_clipped_and_the_norm_before_is_recorded(
    pack: Path, tmp_path: Path
) -> None:
    rows, norms = [], []
    for limit in ("null", "0.05"):
        job = train.prepare(words(pack, tmp_path, f"train.clip_grad_norm={limit}"), 1)
        trainer = Trainer(job, Ranks(0, 1, torch.device("cpu")))
        trainer.train_step()
        rows.append(trainer.row(1, 1.0)["grad_norm"])
        norm = torch.nn.utils.get_total_norm([p.grad for p in trainer.net.parameters()])
        norms.append(float(norm))
    assert rows == [norms[0], norms[0]]
    assert norms[1] == pytest.approx(0.05, rel=1e-4)


def test_clipping_far_above_changes_nothing(reference: tuple, pack: Path, tmp_path: Path) -> None:
    weights, rows = run(pack, tmp_path, "train.clip_grad_norm=1e6")
    assert all(torch.equal(weights[name], reference[0][name]) for name in weights)
    assert [r["grad_norm"] for r in rows] == [r["grad_norm"] for r in reference[1]]


def test_it_learns_and_logs(reference: tuple) -> None:
    _, rows = reference
    assert [row["step"] for row in rows] == list(range(1, 9))
    assert [row["images"] for row in rows] == list(range(12, 97, 12))
    assert np.mean(losses(rows)[-3:]) < np.mean(losses(rows)[:3])
    assert all(row["grad_norm"] > 0 for row in rows)


def test_accumulation_changes_nothing(reference: tuple, pack: Path, tmp_path: Path) -> None:
    weights, rows = run(pack, tmp_path, "runtime.micro_batch=3")
    assert difference(reference[0], weights) < 1e-5
    np.testing.assert_allclose(losses(rows), losses(reference[1]), rtol=1e-5)


def test_the_number_of_ranks_changes_nothing(reference: tuple, two_ranks: Path) -> None:
    """Numbers of ranks and of passes up to four: training/test_same_model.py."""
    weights, rows = outcome(two_ranks / "reference")
    assert difference(reference[0], weights) < 1e-5
    np.testing.assert_allclose(losses(rows), losses(reference[1]), rtol=1e-5)


def test_killed_and_resumed_is_bit_identical(reference: tuple, pack: Path, tmp_path: Path) -> None:
    # a longer run of the same experiment, so that the kill always comes in the middle
    more = ("train.images=12000", "runtime.checkpoint_images=12", "runtime.keep_checkpoints=5000")
    arguments = words(pack, tmp_path, *more)
    process = subprocess.Popen([sys.executable, "-m", "pipeline.train", *arguments], cwd=ROOT)
    while not list(tmp_path.glob("checkpoints/*/step-*3.pt")):
        assert process.poll() is None
        time.sleep(0.002)
    process.kill()
    process.wait()
    assert not (tmp_path / "weights.safetensors").exists()
    weights, rows = run(pack, tmp_path)
    assert all(torch.equal(weights[name], reference[0][name]) for name in weights)
    assert losses(rows) == losses(reference[1])  # no step twice, none missing


@pytest.mark.slow
def test_sigterm_saves_and_says_resumable(pack: Path, tmp_path: Path) -> None:
    arguments = words(pack, tmp_path, "train.images=120000", "runtime.checkpoint_images=10000000")
    process = torchrun(2, arguments)
    metrics = []
    while not metrics or metrics[0].stat().st_size < 500:
        assert process.poll() is None
        metrics = list(tmp_path.glob("checkpoints/*/metrics.jsonl"))
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=600)
    assert process.returncode != 0
    assert "the same command resumes" in output
    saved = list(tmp_path.glob("checkpoints/*/step-*.pt"))
    rows = [json.loads(line) for line in metrics[0].read_text().splitlines()]
    assert checkpoint.step_of(saved[-1]) == rows[-1]["step"]  # nothing lost


def test_signal_in_one_process_raises_stopped(pack: Path, tmp_path: Path) -> None:
    threading.Timer(1.0, os.kill, [os.getpid(), signal.SIGTERM]).start()
    with pytest.raises(Stopped, match="the same command resumes"):
        train.main(words(pack, tmp_path, "train.images=1200000"))


def test_a_longer_run_goes_on(pack: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run(pack, tmp_path, "train.images=48")
    _, rows = run(pack, tmp_path)
    assert "resuming from step 4 of 8" in capsys.readouterr().out
    assert [row["step"] for row in rows] == list(range(1, 9))


def test_each_experiment_has_its_own_checkpoints(
    pack: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    first, _ = run(pack, tmp_path)
    second, _ = run(pack, tmp_path, "train.lr=2e-4")
    assert difference(first, second) > 1e-6
    assert "resuming" not in capsys.readouterr().out
    again, _ = run(pack, tmp_path)
    assert "resuming from step 8 of 8" in capsys.readouterr().out
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_runtime_keys_are_not_part_of_the_identity() -> None:
    plain = identity(resolved(), "x")
    assert identity(resolved("runtime.workers=2", "launch.threads=3"), "x") == plain
    assert identity(resolved("train.seed=5"), "x") != plain
    assert identity(resolved(), "y") != plain


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine", "inverse_sqrt"])
def test_a_longer_run_is_another_only_where_the_rate_falls_to_its_end(schedule: str) -> None:
    keys = f"train.lr_schedule={schedule}"
    short, long = (
        identity(resolved(keys, f"train.images={images}"), "x") for images in (4096, 8192)
    )
    assert (short != long) == (schedule in ("linear", "cosine"))


def test_weights_carry_what_made_them(reference: tuple, pack: Path, tmp_path: Path) -> None:
    run(pack, tmp_path)
    about = weights_file.read_about(tmp_path / "weights.safetensors")
    assert about.config["train"]["batch"] == 12
    assert about.record["sha256"] == json.loads((pack / "manifest.json").read_text())["sha256"]
    assert about.images == 96


def test_bf16_learns_too(pack: Path, tmp_path: Path, reference: tuple) -> None:
    _, rows = run(pack, tmp_path, "train.precision=bf16")
    np.testing.assert_allclose(losses(rows), losses(reference[1]), rtol=0.02)
    assert losses(rows) != losses(reference[1])


def preflight(argv: list[str], world: int) -> None:
    train.preflight(*load_step(argv, train.STEP.words), world)


def test_a_batch_that_the_ranks_cannot_divide(pack: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="train.batch=12 cannot be divided over 5 processes"):
        preflight(words(pack, tmp_path), 5)
    with pytest.raises(UserError, match="runtime.micro_batch=4 does not divide the 6 of"):
        train.preflight(
            *load_step(words(pack, tmp_path, "runtime.micro_batch=4"), train.STEP.words), 2
        )
    assert not (tmp_path / "checkpoints").exists()


def test_images_without_classes_teach_none(tmp_path: Path) -> None:
    folder = tmp_path / "pack"
    record = write_pack(folder, num=24, size=8, classes=1).to_json() | {"classes": ["no_class"]}
    write_json(folder / "manifest.json", record)
    with pytest.raises(UserError, match=r"pack has no classes, but model.class_conditional=true"):
        preflight(words(folder, tmp_path), 1)
    preflight(words(folder, tmp_path, "model.class_conditional=false", "sample.guidance=1"), 1)


def test_a_loss_that_is_not_finite_stops(pack: Path, tmp_path: Path) -> None:
    says = "not finite at step .*train.start=CHECKPOINT starts the new one from the weights of"
    with pytest.raises(UserError, match=says):
        run(pack, tmp_path, "train.lr=1e30", "train.warmup_images=0")
    assert not (tmp_path / "weights.safetensors").exists()


@pytest.mark.slow
def test_a_failing_rank_ends_all_with_its_own_sentence(pack: Path, tmp_path: Path) -> None:
    """Through the launcher, with two ranks: the sentence, status 2, no traceback of any agent."""
    command = [sys.executable, "-m", "pipeline.launch", "--gpus", "2", "--", "-m", "pipeline.train"]
    command += words(pack, tmp_path, "train.lr=1e30", "train.warmup_images=0")
    command.append("launch.max_restarts=3")  # which is for ranks that were killed
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    output = done.stdout + done.stderr
    assert done.returncode == 2, output
    assert output.count("not finite at step") == 1 and "Traceback" not in output
    assert not list(tmp_path.glob("checkpoints/*/step-*.pt"))


@pytest.mark.slow
def test_sigterm_through_the_launcher_leaves_with_75(pack: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pipeline.launch", "--gpus", "2", "--", "-m", "pipeline.train"]
    command += words(pack, tmp_path, "train.images=120000", "runtime.checkpoint_images=10000000")
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    while not list(tmp_path.glob("checkpoints/*/metrics.jsonl")):
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 75, output
    assert "the same command resumes" in output and "Traceback" not in output
    assert list(tmp_path.glob("checkpoints/*/step-*.pt"))


def test_a_shorter_run_between_loses_no_row(pack: Path, tmp_path: Path) -> None:
    run(pack, tmp_path, "runtime.keep_checkpoints=9")
    _, short = run(pack, tmp_path, "train.images=48", "runtime.keep_checkpoints=9")
    _, whole = run(pack, tmp_path, "runtime.keep_checkpoints=9")
    assert [row["step"] for row in short] == [1, 2, 3, 4]
    assert [row["step"] for row in whole] == list(range(1, 9))


def test_too_little_memory_names_the_key(
    pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*_: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(Trainer, "train_step", no_memory)
    with pytest.raises(
        UserError, match="12 images at once do not fit on cpu: .*runtime.micro_batch"
    ):
        train.main(words(pack, tmp_path))


def auto(*words: str, world: int) -> int:
    config = resolved(*words)
    return batch_size.micro_batch(config, world, made_up(config, 10).most_items)


def test_auto_micro_batch_is_bounded_and_divides() -> None:
    assert auto("train.batch=2048", world=4) == 64
    assert auto("train.batch=2048", "data.resolution=32", world=4) == 256
    assert auto("train.batch=1000", world=4) == 50
    assert auto("experiment=small", world=2) == 32


def test_steps_by_hand_take_the_packs_own_name(pack: Path) -> None:
    job = train.prepare([*SMALL, f"data.path={pack}", "data.source=train"], 1)
    assert job.out.parts[-2:] == ("shapes_tiny_8-box", "train")
