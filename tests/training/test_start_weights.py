"""Trainings that start from given weights: which, on any ranks, their identity, refusals."""

import json
import shutil
import subprocess
from pathlib import Path
from zipfile import ZipFile

import pytest
import torch
from torch import Tensor

from pipeline import import_weights, sample, train
from pipeline.base.errors import UserError
from pipeline.base.files import sha256_file
from pipeline.compute.distributed import Ranks
from pipeline.config.load import load_step
from pipeline.training import checkpoint, start_weights
from pipeline.training.loop import resume
from pipeline.training.trainer import Trainer
from pipeline.training.weights_file import load_weights, read_about
from tests.compute.test_agreement import by_hand, free_port, refusal
from tests.conftest import load_fixture, peer_state, write_pack
from tests.on_ranks import train_on_ranks
from tests.test_import_weights import HEADS, write
from tests.test_train import losses, outcome, run, words

TWO = "train.ema_halflife_images=[50,0]"


@pytest.fixture(scope="module")
def first(pack: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training of 8 steps, its average and its weights themselves."""
    out = tmp_path_factory.mktemp("first")
    run(pack, out, TWO)
    return out


@pytest.fixture(scope="module")
def averaged(first: Path) -> Path:
    return first / "weights.safetensors"


@pytest.fixture(scope="module")
def saved(first: Path) -> Path:
    """Its last checkpoint."""
    [folder] = first.glob("checkpoints/*")
    return checkpoint.checkpoints(folder)[-1]


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def begun(pack: Path, out: Path, *more: str) -> Trainer:
    """A trainer before its first step."""
    trainer = Trainer(train.prepare(words(pack, out, *more), 1), Ranks(0, 1, torch.device("cpu")))
    resume(trainer, None)
    return trainer


def folder(out: Path) -> Path:
    [place] = out.glob("checkpoints/*")
    return place


# --- what it starts from --------------------------------------------------------------------------


def test_weights_and_averages_are_those_of_the_file_at_step_0(
    first: Path, averaged: Path, saved: Path, pack: Path, tmp_path: Path
) -> None:
    for file, expected in (
        (averaged, load_weights(averaged)),
        (saved, load_weights(first / "weights-ema0.safetensors")),  # the current ones
    ):
        trainer = begun(pack, tmp_path, TWO, f"train.start={file}")
        assert trainer.step == 0 and not trainer.optimizer.state
        for net in (trainer.net, *(average.net for average in trainer.averages)):
            assert same(dict(net.state_dict()), expected)
        remainder = trainer.averages[0].remainder
        assert remainder is not None and not any(p.any() for p in remainder.parameters())
    assert not same(load_weights(averaged), expected)
    assert not same(dict(begun(pack, tmp_path).net.state_dict()), expected)


def test_it_is_another_training_that_learns_on(
    averaged: Path, saved: Path, pack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("train.images=24", "train.lr=2e-4")
    weights, rows = run(pack, tmp_path, f"train.start={saved}", *more)
    said = f"train: starting at step 0 from {saved}, current weights after 96 images"
    assert said in capsys.readouterr().out
    assert [row["step"] for row in rows] == [1, 2]
    about = read_about(tmp_path / "weights.safetensors")
    digest = sha256_file(saved)
    words_of = {"weights": "current weights after 96 images"}
    assert about.start == {"file": saved.name, "sha256": digest, **words_of}
    assert about.config["train"]["start"] == digest
    assert about.images == 24  # of this training
    assert json.loads((tmp_path / "config.json").read_text())["train"]["start"] == digest
    other, _ = run(pack, tmp_path, f"train.start={averaged}", *more)
    assert "averaged with a half-life of 50 images" in capsys.readouterr().out
    plain, _ = run(pack, tmp_path, *more)
    assert not same(weights, other) and not same(plain, weights) and not same(plain, other)
    assert read_about(tmp_path / "weights.safetensors").start is None
    assert len(list(tmp_path.glob("checkpoints/*"))) == 3


def test_samples_say_where_the_training_started(averaged: Path, pack: Path, tmp_path: Path) -> None:
    run(pack, tmp_path, f"train.start={averaged}", "train.images=12")
    more = ["sample.num=2", "sample.steps=1", f"weights={tmp_path}/weights.safetensors"]
    sample.main(["experiment=tiny", *more, f"out={tmp_path}/samples"])
    about = json.loads((tmp_path / "samples" / "sample.json").read_text())
    assert about["train"]["start"]["file"] == "weights.safetensors"
    assert about["train"]["start"]["sha256"] == sha256_file(averaged)


@pytest.mark.slow
def test_two_ranks_start_alike(averaged: Path, pack: Path, tmp_path: Path) -> None:
    more = (f"train.start={averaged}", "train.images=24", "runtime.checkpoint_images=12")
    weights, rows = run(pack, tmp_path / "one", *more)
    strategies = ("ddp", "fsdp2")
    output = train_on_ranks(
        2, *(words(pack, tmp_path / s, *more, f"runtime.strategy={s}") for s in strategies)
    )
    assert output.count("starting at step 0 from") == 2
    for strategy in strategies:
        weights_of_two, rows_of_two = outcome(tmp_path / strategy)
        assert losses(rows_of_two) == pytest.approx(losses(rows), rel=1e-5)
        assert all(torch.allclose(weights[n], weights_of_two[n], atol=1e-6) for n in weights)
        assert folder(tmp_path / "one").name == folder(tmp_path / strategy).name


@pytest.mark.parametrize("name", HEADS)
def test_imported_weights_do(name: str, tmp_path: Path) -> None:
    """With classes and without; their dropout is not known, so any will do."""
    fixture, arguments = load_fixture(name)
    file = tmp_path / "a.safetensors"
    import_weights.main(
        [str(write(tmp_path / "a.pth", peer_state(fixture))), str(file), HEADS[name]]
    )
    classes = arguments["num_classes"] or 3
    write_pack(tmp_path / "pack", num=24, size=16, classes=classes)
    keys = read_about(file).config["model"] | {"dropout": 0.2}
    network = [f"model.{key}={json.dumps(value)}" for key, value in keys.items()]
    trainer = begun(tmp_path / "pack", tmp_path / "out", *network, f"train.start={file}")
    assert same(dict(trainer.net.state_dict()), load_weights(file))
    assert trainer.start is not None and "flow_matching" in trainer.start["weights"]


# --- identity -------------------------------------------------------------------------------------


def test_the_content_is_the_identity_not_the_place(
    averaged: Path, saved: Path, pack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = tmp_path / "moved.safetensors"
    shutil.copy(averaged, moved)
    out = tmp_path / "out"
    plain = train.prepare(words(pack, out), 1)
    here, there, other = (
        train.prepare(words(pack, out, f"train.start={file}"), 1)
        for file in (averaged, moved, saved)
    )
    assert here.scratch == there.scratch and here.identity == there.identity
    assert len({plain.scratch, here.scratch, other.scratch}) == 3
    assert here.identity != other.identity  # which ranks exchange

    run(pack, out, f"train.start={averaged}", "train.images=24")
    run(pack, out, f"train.start={moved}", "train.images=24")
    assert "resuming from step 2 of 2" in capsys.readouterr().out
    assert folder(out) == here.scratch


@pytest.mark.slow
def test_ranks_with_other_files_stop(
    averaged: Path, saved: Path, pack: Path, tmp_path: Path
) -> None:
    port, given, files = free_port(), words(pack, tmp_path), (averaged, saved)
    ranks = [by_hand(port, k, "train", *given, f"train.start={files[k]}") for k in (0, 1)]
    one, other = (f"train.start={sha256_file(file)[:12]}…" for file in files)
    assert f"error: rank 1 has {other} but rank 0 has {one}: start all" in refusal(*ranks)


# --- going on -------------------------------------------------------------------------------------


def test_resumed_it_is_the_same_to_the_bit(
    averaged: Path, pack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "start.safetensors"
    shutil.copy(averaged, file)
    more = (f"train.start={file}", "train.images=48")
    weights, rows = run(pack, tmp_path / "whole", *more)
    run(pack, tmp_path / "cut", more[0], "train.images=24")
    capsys.readouterr()
    again, rows_again = run(pack, tmp_path / "cut", *more)
    said = capsys.readouterr().out
    assert "resuming from step 2 of 4" in said and "starting at step 0" not in said
    assert same(weights, again) and losses(rows) == losses(rows_again)

    # Without the file its hash does, which config.json has, but not for a new training
    digest = sha256_file(file)
    file.unlink()
    with pytest.raises(UserError, match=r"start.safetensors is not a file: give a file of"):
        run(pack, tmp_path / "cut", *more)
    run(pack, tmp_path / "cut", f"train.start={digest}", "train.images=60")
    assert "resuming from step 4 of 5" in capsys.readouterr().out
    start = read_about(tmp_path / "cut" / "weights.safetensors").start
    assert start is not None and start["file"] == file.name
    train.main(
        [f"config={tmp_path}/whole/config.json", f"data.path={pack}", f"out={tmp_path}/whole"]
    )
    assert "resuming from step 4 of 4" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"names a file by its hash, .*: give the file with this"):
        run(pack, tmp_path / "new", f"train.start={digest}")


# --- refusals -------------------------------------------------------------------------------------


def refused(pack: Path, out: Path, says: str, *more: str) -> None:
    """By the launcher's preflight, and before anything is written."""
    with pytest.raises(UserError, match=says):
        train.preflight(*load_step(words(pack, out, *more), train.STEP.words), 1)
    assert not out.exists()


@pytest.mark.parametrize("kind", ["averaged", "saved"])
def test_weights_of_another_network_are_refused(
    kind: str, pack: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    file = request.getfixturevalue(kind)
    out, start = tmp_path / "out", f"train.start={file}"
    says = rf"train.start={file} is of another network: model.{{}}; give these keys as they are"
    refused(pack, out, says.format(r"channels=32 \(here 64\)"), start, "model.channels=64")
    # the same shapes, another function
    refused(
        pack, out, says.format(r"time_scale=1.0 \(here 1000.0\)"), start, "model.time_scale=1000"
    )
    refused(pack, out, says.format(r"class_conditional=True \(here False\)"), start,
            "model.class_conditional=false", "sample.guidance=1")  # fmt: skip


def test_another_number_of_classes_is_refused(averaged: Path, saved: Path, tmp_path: Path) -> None:
    other, out = tmp_path / "pack", tmp_path / "out"
    write_pack(other, num=40, size=8, classes=5)
    says = "was trained on 10 classes, but the images here are of 5: give weights of 5 classes, or"
    refused(other, out, says, f"train.start={averaged}")
    # a checkpoint does not say how many, but its tensors do
    job = train.prepare(words(other, out, f"train.start={saved}"), 1)
    assert job.start is not None
    with pytest.raises(UserError, match=r"label_embedding.weight is 11 x 128 there but 6 x 128 "):
        start_weights.check_tensors(job.start, job.workload)


def test_files_that_hold_no_weights_are_refused(
    first: Path, averaged: Path, saved: Path, pack: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    refused(pack, out, "train.start=none.pt is not a file: give a file of", "train.start=none.pt")
    says = f"is a folder: give one of its files, the newest is {saved}"
    refused(pack, out, says, f"train.start={saved.parent}")
    refused(pack, out, "is a folder: give a file", f"train.start={tmp_path}")
    (text := tmp_path / "text").write_text("no weights")
    refused(pack, out, "are damaged or not safetensors", f"train.start={text}")
    (cut := tmp_path / "cut.pt").write_bytes(saved.read_bytes()[:-1000])
    refused(pack, out, "cut.pt is damaged or not a checkpoint", f"train.start={cut}")
    says = r"is not a checkpoint of this pipeline \(it holds {}\): .*`python -m pipeline.import_w"
    holding = {"model": {"model": {"x": torch.zeros(1)}}, "a list": [1]}
    holding["step, config, net"] = {"step": 1, "config": {}, "net": {}}
    for names, content in holding.items():
        torch.save(content, foreign := tmp_path / "foreign.pth")
        refused(pack, out, says.format(names), f"train.start={foreign}")


class Evil:
    """Pickled, it asks to be executed."""

    def __init__(self, marker: str) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return subprocess.call, (["touch", self.marker],)


def test_nothing_is_executed(pack: Path, tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    torch.save({"step": Evil(str(marker)), "config": {}, "net": {}}, evil := tmp_path / "evil.pt")
    refused(pack, tmp_path / "out", "is damaged or not a checkpoint", f"train.start={evil}")
    assert not marker.exists()


def test_a_flipped_bit_is_found_before_the_first_step(
    saved: Path, pack: Path, tmp_path: Path
) -> None:
    content = bytearray(saved.read_bytes())
    with ZipFile(saved) as parts:  # between its parts there are bytes that mean nothing
        largest = max(parts.infolist(), key=lambda part: part.file_size)
        place = content.index(parts.read(largest)) + largest.file_size // 2
    content[place] ^= 1
    (flipped := tmp_path / "flipped.pt").write_bytes(content)
    with pytest.raises(UserError, match=r"flipped.pt is damaged or not a checkpoint"):
        run(pack, tmp_path / "out", f"train.start={flipped}")


def test_its_own_results_are_refused(averaged: Path, first: Path, pack: Path) -> None:
    before = averaged.read_bytes()
    says = "is a file that this training writes itself: copy it to another place, or give one of"
    with pytest.raises(UserError, match=says):
        run(pack, first, f"train.start={averaged}", "train.lr=2e-4")
    assert averaged.read_bytes() == before
