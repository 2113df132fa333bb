"""Sampling: an image depends on its index alone; interrupted runs go on."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline import sample
from pipeline.base import files, locks
from pipeline.base.errors import UserError
from pipeline.compute.distributed import Ranks
from pipeline.config import samplers
from pipeline.config.load import load_step
from pipeline.sampling import loop, network, shards
from pipeline.sampling.field import Field
from pipeline.sampling.job import prepare
from pipeline.sampling.network import class_labels
from pipeline.training import weights_file
from tests import without_torch
from tests.conftest import ROOT, resolved
from tests.random_networks import COUNTS, save_network

TINY = ["experiment=tiny", "sample.num=24", "runtime.progress_seconds=1000"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_network(tmp_path_factory.mktemp("weights") / "weights.safetensors")


@pytest.fixture(scope="module", params=["unet", "edm2"])
def of_each_family(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    return save_network(folder / "weights.safetensors", kind=request.param)


def run(weights: Path, out: Path, *more: str) -> tuple[np.ndarray, dict]:
    sample.main([*TINY, f"weights={weights}", f"out={out}", *more])
    return np.load(out / "images.npy"), json.loads((out / "sample.json").read_text())


def test_seeds_differ_and_classes_are_balanced(of_each_family: Path, tmp_path: Path) -> None:
    first, _ = run(of_each_family, tmp_path / "a", "seed=0")
    second, about = run(of_each_family, tmp_path / "b", "seed=1")
    assert (first != second).mean() > 0.5 and about["seed"] == 1
    assert np.load(tmp_path / "a" / "labels.npy").tolist() == [k % 10 for k in range(24)]


@pytest.mark.parametrize(
    ("words", "evaluations"),
    [
        (["sample.solver=euler", "sample.guidance=1"], 4),
        (["sample.solver=euler", "sample.guidance=1.5"], 8),
        (["sample.solver=midpoint", "sample.guidance=1"], 8),
        (["sample.solver=heun", "sample.guidance=1.5"], 16),
        (["sample.solver=rk4", "sample.guidance=1"], 16),
        (["sample.solver=euler", "sample.grid=edm", "sample.steps=1"], 2),
        (["sample.solver=euler", "sample.guidance_interval=[0.2,0.6]"], 6),  # at .25 and .5
        (["sample.solver=midpoint", "sample.grid=[0.1,0.3,1]", "sample.guidance=1"], 4),
    ],
)
def test_evaluations_are_counted(
    of_each_family: Path, tmp_path: Path, words: list[str], evaluations: int
) -> None:
    _, about = run(of_each_family, tmp_path, *words)
    assert about["nfe_mean"] == about["nfe_max"] == evaluations


@pytest.mark.slow
@pytest.mark.parametrize(
    "of_each_family", ["unet", pytest.param("edm2", marks=pytest.mark.slow)], indirect=True
)
def test_solvers_agree_if_steps_are_many(of_each_family: Path, tmp_path: Path) -> None:
    exact, about = run(of_each_family, tmp_path / "d", "sample.solver=dopri5", "sample.num=2")
    assert about["nfe_max"] >= about["nfe_mean"] > 10
    rough = 4 if "edm2" in str(of_each_family) else 1  # its random features of time
    for solver, steps in (("midpoint", 32 * rough), ("heun", 32 * rough), ("rk4", 8 * rough)):
        words = [f"sample.solver={solver}", f"sample.steps={steps}", "sample.num=2"]
        fine, _ = run(of_each_family, tmp_path / solver, *words)
        assert np.abs(exact.astype(int) - fine.astype(int)).max() <= 1


def test_guidance_moves_the_samples(of_each_family: Path, tmp_path: Path) -> None:
    plain, _ = run(of_each_family, tmp_path / "a", "sample.guidance=1")
    strong, _ = run(of_each_family, tmp_path / "b", "sample.guidance=3")
    assert (plain != strong).mean() > 0.2


def test_finished_batches_are_kept(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = run(weights, tmp_path / "a", "runtime.sample_batch=5")
    calls: list[int] = []
    real = shards.sample_images

    def fails_at_the_third(*arguments: object) -> object:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(shards, "sample_images", fails_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        run(weights, tmp_path / "b", "runtime.sample_batch=5")
    assert not (tmp_path / "b" / "images.npy").exists()
    resumed, _ = run(weights, tmp_path / "b", "runtime.sample_batch=5")
    assert len(calls) == 3 + 3  # five batches: two kept, three made
    assert np.array_equal(whole, resumed)
    assert not (tmp_path / "b" / "shards").exists()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_last_batch_rounds_as_a_full_one(
    of_each_family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    monkeypatch.setattr(Field, "pixels", lambda _, x: x.numpy())  # finer than grey levels
    words = [*TINY, "runtime.sample_batch=4", "runtime.device=cpu", f"weights={of_each_family}"]
    words += ["sample.solver=euler", "sample.guidance=1", "sample.steps=2"]
    words += [f"out={tmp_path}", f"sample.precision={precision}"]
    device = torch.device("cpu")
    networks = network.build(prepare(words), Ranks(0, 1, device))
    full, part = (
        shards.sample_shard(prepare([*words, f"sample.num={num}"]), networks, 8, device)
        for num in (12, 9)
    )
    assert [len(values) for values in part] == [1, 1]
    assert np.array_equal(full[0][:1], part[0]) and np.array_equal(full[1][:1], part[1])


@pytest.mark.parametrize(
    ("solver", "num", "start", "computed"),
    [("euler", 3, 0, 3), ("euler", 5, 0, 4), ("euler", 5, 4, 4), ("dopri5", 5, 4, 1)],
)
def test_images_computed_for_a_batch(
    weights: Path, monkeypatch: pytest.MonkeyPatch, solver: str, num: int, start: int, computed: int
) -> None:
    words = [f"sample.solver={solver}", f"sample.num={num}", "runtime.sample_batch=4"]
    job, sizes = prepare([*TINY, f"weights={weights}", *words]), []

    def noted(_job: object, _nets: object, index: np.ndarray, _device: object) -> tuple:
        sizes.append(len(index))
        return index, index

    monkeypatch.setattr(shards, "sample_images", noted)
    index, _ = shards.sample_shard(job, (torch.nn.Identity(), None), start, torch.device("cpu"))
    assert sizes == [computed] and index.tolist() == list(range(start, min(start + 4, num)))


def test_a_second_sampler_waits_or_is_refused(weights: Path, tmp_path: Path) -> None:
    with locks.locked(tmp_path), pytest.raises(UserError, match="is in use by process"):
        run(weights, tmp_path)


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_bytes(weights: Path, tmp_path: Path) -> None:
    words = ["sample.num=30", "sample.steps=16", "runtime.sample_batch=3"]
    run(weights, tmp_path / "a", *words)
    command = [sys.executable, "-m", "pipeline.sample", *TINY, *words]
    command += [f"weights={weights}", f"out={tmp_path / 'b'}"]
    killed = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    while len(list((tmp_path / "b").glob("shards/*/*.npz"))) < 3:
        assert killed.poll() is None
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL and not (tmp_path / "b" / "images.npy").exists()
    run(weights, tmp_path / "b", *words)
    for name in ("images.npy", "labels.npy", "grid.png", "strip.png"):
        assert files.sha256_file(tmp_path / "a" / name) == files.sha256_file(tmp_path / "b" / name)
    assert not list((tmp_path / "b").glob("shards*")) and not list((tmp_path / "b").glob(".*"))


def test_images_are_a_plain_npy(weights: Path, tmp_path: Path) -> None:
    images, _ = run(weights, tmp_path, "runtime.sample_batch=7")
    np.save(tmp_path / "again.npy", images)
    assert files.sha256_file(tmp_path / "images.npy") == files.sha256_file(tmp_path / "again.npy")
    assert images.shape == (24, 8, 8, 3) and images.dtype == np.uint8


def test_labels_are_drawn_as_often_as_in_the_data(weights: Path, tmp_path: Path) -> None:
    words = [*TINY, f"weights={weights}", "sample.classes=histogram", "seed=3"]
    job = prepare([*words, "sample.num=20000"])
    labels = class_labels(job, np.arange(20000, dtype=np.int64))
    share, found = np.array(COUNTS) / sum(COUNTS), np.bincount(labels, minlength=10) / 20000
    deviation = np.sqrt(share * (1 - share) / 20000)
    assert (np.abs(found - share) <= 4 * deviation).all() and found[COUNTS.index(0)] == 0
    order = np.random.default_rng(0).permutation(20000)
    assert np.array_equal(class_labels(job, order), labels[order])
    assert np.array_equal(class_labels(job, order[:3]), labels[order[:3]])
    run(weights, tmp_path, "sample.classes=histogram", "seed=3", "runtime.sample_batch=5")
    assert np.array_equal(np.load(tmp_path / "labels.npy"), labels[:24])


def test_a_histogram_needs_counts(tmp_path: Path) -> None:
    bare = save_network(tmp_path / "bare.safetensors", per_class=None)
    with pytest.raises(UserError, match="do not say how many images each class had"):
        sample.prepare([*TINY, f"weights={bare}", "sample.classes=histogram"])
    run(bare, tmp_path / "out")


def test_chosen_classes_are_shared_out_by_index(weights: Path, tmp_path: Path) -> None:
    every, _ = run(weights, tmp_path / "a", "sample.classes=balanced")
    chosen, about = run(weights, tmp_path / "b", "sample.classes=[3, class5]")
    labels = np.load(tmp_path / "b" / "labels.npy")
    assert labels.tolist() == [3, 5] * 12
    assert about["config"]["sample"]["classes"] == [3, "class5"]
    same = labels == np.load(tmp_path / "a" / "labels.npy")  # same noise, and so the same image
    assert same.sum() == 2 and np.array_equal(every[same], chosen[same])
    assert (every[~same] != chosen[~same]).mean() > 0.1
    parts, _ = run(weights, tmp_path / "c", "sample.classes=[3, class5]", "runtime.sample_batch=5")
    assert np.array_equal(np.load(tmp_path / "c" / "labels.npy"), labels)
    assert np.abs(parts.astype(int) - chosen.astype(int)).max() <= 1


@pytest.mark.parametrize(
    ("classes", "model", "sentence"),
    [
        ("[3, 10]", {}, "no class has the number 10; the classes are 0 to 9"),
        ("[clas3]", {}, "did you mean class3"),
        ("[3]", {"class_conditional": "false"}, "the network knows no classes"),
    ],
)
def test_classes_that_the_network_does_not_know_are_refused(
    tmp_path: Path, classes: str, model: dict[str, str], sentence: str
) -> None:
    file = save_network(tmp_path / "w.safetensors", **model)
    words = [*TINY, f"weights={file}", f"sample.classes={classes}", "sample.guidance=1"]
    with pytest.raises(UserError, match=sentence):
        sample.prepare(words)


def test_a_guide_moves_the_samples_and_is_named(weights: Path, tmp_path: Path) -> None:
    guide = save_network(tmp_path / "guide.safetensors", seed=1, channels=64)
    words = ["sample.guidance=2", f"sample.guide={guide}"]
    guided, about = run(weights, tmp_path / "a", *words)
    plain, other = run(weights, tmp_path / "b", "sample.guidance=2")
    assert (guided != plain).mean() > 0.2 and about["nfe_mean"] == 8
    assert about["guide_sha256"] == files.sha256_file(guide) and other["guide_sha256"] is None
    itself, _ = run(weights, tmp_path / "c", "sample.guidance=2", f"sample.guide={weights}")
    unguided, about = run(weights, tmp_path / "d", "sample.guidance=1", f"sample.guide={guide}")
    assert np.abs(itself.astype(int) - unguided.astype(int)).max() <= 1
    assert about["guide_sha256"] is None and about["nfe_mean"] == 4


def test_a_guide_may_be_of_another_family(of_each_family: Path, tmp_path: Path) -> None:
    model = weights_file.read_about(of_each_family).config["model"]
    kind = "unet" if "kind" in model else "edm2"  # the other one
    guide = save_network(tmp_path / "guide.safetensors", seed=1, kind=kind)
    words = ["sample.guidance=2", "sample.solver=euler"]
    guided, about = run(of_each_family, tmp_path / "a", *words, f"sample.guide={guide}")
    plain, _ = run(of_each_family, tmp_path / "b", *words)
    assert (guided != plain).mean() > 0.2 and about["nfe_mean"] == 8


def test_shards_of_another_guide_are_not_taken(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guide, words = tmp_path / "guide.safetensors", ["sample.guidance=2", "runtime.sample_batch=12"]
    words.append(f"sample.guide={guide}")
    save_network(guide, seed=2)
    expected, _ = run(weights, tmp_path / "a", *words)
    save_network(guide, seed=1)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "collect", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(weights, tmp_path / "b", *words)
    save_network(guide, seed=2)
    found, _ = run(weights, tmp_path / "b", *words)
    assert np.array_equal(found, expected)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"resolution": 16}, "images of 16 px in 10 classes"),
        ({"classes": 5}, "images of 8 px in 5 classes"),
        ({"class_conditional": False}, "images of 8 px without classes"),
    ],
)
def test_a_guide_of_other_images_is_refused(
    weights: Path, tmp_path: Path, changes: dict, sentence: str
) -> None:
    guide = save_network(tmp_path / "guide.safetensors", **changes)
    with pytest.raises(UserError, match=sentence):
        sample.prepare([*TINY, f"weights={weights}", "sample.guidance=2", f"sample.guide={guide}"])


def test_a_network_without_classes_is_guided_by_a_guide_alone(tmp_path: Path) -> None:
    net = save_network(tmp_path / "net.safetensors", class_conditional=False)
    guide = save_network(tmp_path / "guide.safetensors", seed=1, class_conditional=False)
    with pytest.raises(UserError, match="is not possible, since the network knows no classes"):
        run(net, tmp_path / "a", "sample.guidance=2")
    plain, about = run(net, tmp_path / "a", "sample.guidance=1")
    guided, other = run(net, tmp_path / "b", "sample.guidance=2", f"sample.guide={guide}")
    assert about["nfe_mean"] == 4 and other["nfe_mean"] == 8 and (plain != guided).mean() > 0.2
    assert (np.load(tmp_path / "b" / "labels.npy") == -1).all()


@pytest.mark.parametrize(
    ("solver", "num", "batch"), [("heun", 3, 256), ("heun", 11, 3), ("dopri5", 4, 256)]
)
def test_the_strip_ends_in_the_samples(
    weights: Path, tmp_path: Path, solver: str, num: int, batch: int
) -> None:
    words = [f"sample.solver={solver}", f"sample.num={num}", f"runtime.sample_batch={batch}"]
    images, _ = run(weights, tmp_path, *words)
    with Image.open(tmp_path / "strip.png") as picture:
        pixels = np.asarray(picture).astype(int)
    rows, cell = min(num, 8), 64  # px: 8 times 8
    shown = [
        pixels[-(12 + 68 * (rows - k)) + 4 :, -(12 + cell) : -12][:cell:8, ::8] for k in range(rows)
    ]
    assert np.abs(np.stack(shown) - images[:rows].astype(int)).max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["euler", "dopri5"])
def test_images_that_are_not_finite_are_refused(weights: Path, tmp_path: Path, solver: str) -> None:
    state, about = weights_file.load_weights(weights), weights_file.read_about(weights)
    state["out_conv.bias"] = torch.full_like(state["out_conv.bias"], torch.nan)
    weights_file.save_weights(tmp_path / "nan.safetensors", state, about)
    with pytest.raises(UserError, match="images 0 to 23 of seed 0 .* finite"):
        run(tmp_path / "nan.safetensors", tmp_path / "out", f"sample.solver={solver}")
    assert not list((tmp_path / "out").glob("shards/*/*"))


def test_an_older_description_never_stands_beside_new_images(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(weights, tmp_path, "seed=0")
    (tmp_path / ".images.npy.1.tmp").write_text("begun by a run that was killed")
    monkeypatch.setattr(loop, "save_strip", lambda *_: 1 / 0)  # the images are written by then
    with pytest.raises(ZeroDivisionError):
        run(weights, tmp_path, "seed=1")
    assert (tmp_path / "images.npy").exists() and not (tmp_path / "sample.json").exists()
    assert not list(tmp_path.glob(".*"))


def test_progress_counts_finished_batches(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    words = ["runtime.sample_batch=6", "runtime.progress_seconds=0"]
    with monkeypatch.context() as patch:
        patch.setattr(loop, "collect", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(weights, tmp_path, *words)
    next(tmp_path.glob("shards/*/00000006.npz")).unlink()
    capsys.readouterr()
    run(weights, tmp_path, *words)
    shown = [line for line in capsys.readouterr().out.splitlines() if " of 24 images" in line]
    assert shown[0].startswith("sample: 18 of") and shown[-1].startswith("sample: 24 of")


def test_missing_weights_get_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run `make train`"):
        words = [*TINY, f"weights={tmp_path / 'none'}"]
        sample.preflight(*load_step(words, sample.STEP.words), 1)
    with pytest.raises(UserError, match="seed=x is not a whole number"):
        sample.prepare([*TINY, "seed=x", f"weights={tmp_path / 'none'}"])


def test_preflight_neither_loads_torch_nor_hashes(weights: Path, tmp_path: Path) -> None:
    without_torch.preflight("sample", *TINY, f"weights={weights}", f"out={tmp_path}")


def test_only_the_first_rank_of_a_machine_hashes_the_weights(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guide = save_network(tmp_path / "guide.safetensors", seed=1)
    job = prepare([*TINY, f"weights={weights}", "sample.guidance=2", f"sample.guide={guide}"])
    first, other = (Ranks(rank, 1, torch.device("cpu")) for rank in (0, 1))
    expected = (files.sha256_file(weights), files.sha256_file(guide))
    assert shards.checksums(job, first) == expected
    guide.unlink()
    monkeypatch.setenv("LOCAL_RANK", "1")
    shards.checksums(job, other)  # waits for rank 0's, and opens no file
    monkeypatch.delenv("LOCAL_RANK")
    alone = prepare([*TINY, f"weights={weights}"])
    assert shards.checksums(alone, first) == (expected[0], None)


def test_one_of_several_samplers_is_named(weights: Path, tmp_path: Path) -> None:
    several = "sample.runs=[{solver: euler, steps: 2}, {solver: heun, steps: 3}]"
    with pytest.raises(UserError, match="sampler=NAME, euler-2.* or heun-3"):
        run(weights, tmp_path / "out", several)
    with pytest.raises(UserError, match="no sampler euler-9 in this experiment"):
        run(weights, tmp_path / "out", several, "sampler=euler-9")
    every = samplers.by_sampler(resolved(several, "experiment=tiny"))
    name = next(one for one in every if one.startswith("heun-3"))
    images, about = run(weights, tmp_path / "out", several, f"sampler={name}")
    alone, _ = run(weights, tmp_path / "alone", "sample.solver=heun", "sample.steps=3")
    assert about["sampler"] == name and (images == alone).all()


def test_out_is_not_a_file(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(UserError, match="is a file: give a folder"):
        run(weights, tmp_path / "out")
