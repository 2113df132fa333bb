"""Score over training: which weights are scored, that a kill costs one of them, and no training."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from pipeline import milestones, reference, train
from pipeline.base import locks
from pipeline.base.errors import UserError
from pipeline.reporting.milestones import in_words, read_milestones
from pipeline.training import checkpoint
from pipeline.training.milestones import check_planned, planned
from pipeline.training.weights_file import load_weights
from pipeline.trials import milestones_loop, points
from pipeline.trials.points import Points
from tests import without_torch
from tests.conftest import ROOT, resolved
from tests.on_ranks import on_ranks
from tests.test_train import difference, words

KEPT = ["runtime.milestone_images=36", "train.ema_halflife_images=[60,0]"]
POWER = ["train.ema=power", "train.ema_snapshot_images=36"]
SCORE = ["experiment=tiny", "runtime.device=cpu", "sample.steps=2", "evaluate.milestone_num=10"]
LAST = 96  # images


class World:
    """A pack, its reference, and trainings on it."""

    def __init__(self, root: Path, pack: Path) -> None:
        self.root, self.pack = root, pack

    def train(self, name: str, *more: str) -> Path:
        train.main(words(self.pack, self.root / name, *more))
        return self.root / name

    def words(self, run: Path, out: Path, *more: str) -> list[str]:
        paths = [f"training={run}", f"record={self.root}/record.json", f"out={out}"]
        return [*SCORE, *paths, f"reference={self.root}/reference.npz", *more]


@pytest.fixture(scope="module")
def world(pack: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("milestones")
    paths = [f"record={pack}/manifest.json", f"out={root}/reference.npz", f"data.path={pack}"]
    reference.main(["experiment=tiny", "runtime.device=cpu", *paths])
    shutil.copy(pack / "manifest.json", root / "record.json")
    return World(root, pack)


@pytest.fixture(scope="module")
def kept(world: World) -> Path:
    """A training with checkpoints that stay."""
    return world.train("kept", *KEPT)


@pytest.fixture(scope="module")
def scored(world: World, kept: Path) -> Path:
    """Its scores, undisturbed."""
    milestones.main(world.words(kept, world.root / "scored"))
    return world.root / "scored"


def images(out: Path) -> list[int]:
    return [row.images for row in read_milestones(out / "curve.jsonl")]


def trials(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.glob("points/*.json")}


def test_the_milestones_of_a_configuration() -> None:
    base = resolved("experiment=tiny", "train.images=100", "train.batch=12").train
    assert planned(base, None) == [108]
    assert planned(base, 30) == [36, 60, 96, 108]
    assert planned(base, 5) == [12 * k for k in range(1, 10)]
    power = base.model_copy(update={"ema": "power", "ema_snapshot_images": 48})
    assert planned(power, 30) == power.stored_images(108) == [48, 96, 108]


@pytest.mark.parametrize(
    ("words", "key"),
    [
        ([], "set runtime.milestone_images"),
        (["train.ema=power"], "set train.ema_snapshot_images"),
    ],
)
def test_nothing_but_the_end_is_refused_before_anything_runs(words: list[str], key: str) -> None:
    with pytest.raises(UserError, match=f"nothing to score but the end .*{key}"):
        check_planned(resolved("experiment=tiny", *words))
    check_planned(resolved("experiment=tiny", "runtime.milestone_images=64"))


def test_its_launcher_needs_no_torch(world: World, kept: Path, tmp_path: Path) -> None:
    without_torch.preflight("milestones", *world.words(kept, tmp_path))


def test_each_milestone_and_the_end_has_a_row_of_its_average(
    world: World, kept: Path, scored: Path
) -> None:
    assert images(scored) == [36, 72, LAST]
    rows = read_milestones(scored / "curve.jsonl")
    assert {(row.num, row.seed) for row in rows} == {(10, 0)}
    assert len({row.distance for row in rows}) == 3 and len(trials(scored)) == 3
    assert (scored / "curve.png").stat().st_size > 10_000
    assert "first" in in_words(rows) and "best" in in_words(rows) and "last" in in_words(rows)

    # The average that sample.* names, not the current weights
    job = milestones.prepare(world.words(kept, scored, "sample.ema_halflife_images=60"))
    first, *_, end = job.run.reached()
    state = checkpoint.load(first.path)
    assert difference(job.run.tensors(first), state["averages"][0]) == 0
    assert difference(job.run.tensors(first), state["net"]) > 0
    assert difference(job.run.tensors(end), load_weights(kept / "weights.safetensors")) == 0
    plain = milestones.prepare(world.words(kept, scored, "sample.ema_halflife_images=0"))
    assert difference(plain.run.tensors(first), state["net"]) == 0
    assert plain.run.sha256(first) != job.run.sha256(first)


def test_stored_averages_of_any_width(world: World) -> None:
    run = world.train("power", *POWER)
    job = milestones.prepare(world.words(run, run / "out", *POWER[:1], "sample.ema_width=0.07"))
    assert [m.images for m in job.run.reached()] == [36, 72, LAST]
    plain = milestones.prepare(world.words(run, run / "out", *POWER[:1]))
    for milestone in job.run.reached():
        tracked, made = plain.run.tensors(milestone), job.run.tensors(milestone)
        assert all(torch.isfinite(value).all() for value in made.values())
        assert difference(tracked, load_weights(milestone.path)) == 0
    assert difference(tracked, made) > 0
    assert difference(tracked, load_weights(run / "weights.safetensors")) < 1e-6

    # One width of the newest is still being written
    newest = sorted(run.glob("checkpoints/*/averages/ema0.1-*"))[-1]
    newest.unlink()
    assert [m.images for m in job.run.reached()] == [36, 72]


@pytest.mark.slow
def test_killed_it_goes_on_at_the_first_one_missing(
    world: World, kept: Path, scored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial, made = Points.trial, []

    def dying(self: Points, *args: object) -> object:
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(args)
        return trial(self, *args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Points, "trial", dying)
        milestones.main(world.words(kept, tmp_path))
    assert images(tmp_path) == [36, 72]
    measure, measured = points.measure, []
    monkeypatch.setattr(
        points, "measure", lambda job, *args: measured.append(job) or measure(job, *args)
    )
    milestones.main(world.words(kept, tmp_path))
    assert [job.weights.about.images for job in measured] == [LAST]
    assert trials(tmp_path) == trials(scored)
    for name in ("curve.jsonl", "curve.png"):
        assert (tmp_path / name).read_bytes() == (scored / name).read_bytes()


@pytest.mark.slow
def test_a_training_that_went_on_has_its_new_ones_scored_alone(
    world: World, kept: Path, scored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(kept, tmp_path / "train")
    shutil.copytree(scored, tmp_path / "scored")
    train.main(words(world.pack, tmp_path / "train", *KEPT, "train.images=144"))
    measure, measured = points.measure, []
    monkeypatch.setattr(
        points, "measure", lambda job, *args: measured.append(job) or measure(job, *args)
    )
    milestones.main(world.words(tmp_path / "train", tmp_path / "scored"))
    assert [job.weights.about.images for job in measured] == [108, 144]
    assert images(tmp_path / "scored") == [36, 72, 108, 144]


def test_bad_input_has_one_sentence(world: World, kept: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no training: start it first"):
        milestones.main(world.words(tmp_path / "none", tmp_path))
    with pytest.raises(UserError, match="watch=maybe is not valid"):
        milestones.main(world.words(kept, tmp_path, "watch=maybe"))
    shutil.copytree(kept, tmp_path / "train")
    (tmp_path / "train" / "weights.safetensors").unlink()
    files = sorted((tmp_path / "train").glob("checkpoints/*/*.milestone.pt"))
    files[0].write_bytes(files[0].read_bytes()[:5000])
    with pytest.raises(UserError, match="is damaged .*delete it to leave this milestone out"):
        milestones.main(world.words(tmp_path / "train", tmp_path / "out"))
    for path in files:
        path.unlink()
    with pytest.raises(UserError, match="pipeline.milestones samples many networks, and sample.so"):
        milestones.main(world.words(kept, tmp_path, "sample.solver=learned"))
    with pytest.raises(UserError, match="no milestone yet: give watch=true"):
        milestones.main(world.words(tmp_path / "train", tmp_path / "out"))


def test_a_watcher_says_once_that_nothing_trains(
    world: World, kept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(kept, tmp_path / "train")
    run = milestones.prepare(world.words(tmp_path / "train", tmp_path / "out")).run
    assert not milestones_loop.note_pause(run, False)  # its end is there
    (tmp_path / "train" / "weights.safetensors").unlink()
    with locks.locked(run.scratch):
        assert not milestones_loop.note_pause(run, False)
    assert capsys.readouterr().out == ""
    assert milestones_loop.note_pause(run, False) and milestones_loop.note_pause(run, True)
    said = capsys.readouterr().out
    assert said.count("nothing trains in") == 1 and str(tmp_path / "train") in said


@pytest.mark.slow
def test_beside_a_training_that_it_does_not_touch(world: World, kept: Path, tmp_path: Path) -> None:
    """Watched from another process, the training ends with the same bits."""
    out = tmp_path / "train"
    command = [sys.executable, "-m", "pipeline.train", *words(world.pack, out, *KEPT)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=ROOT, env=environment) as trainer:
        while not (out / "config.json").exists():
            time.sleep(0.05)
        os.kill(trainer.pid, signal.SIGSTOP)
        watch = [*world.words(out, tmp_path / "out"), "watch=true"]
        watch = [sys.executable, "-m", "pipeline.milestones", *watch]
        with subprocess.Popen(watch, cwd=ROOT, env=environment) as watcher:
            os.kill(trainer.pid, signal.SIGCONT)
            assert trainer.wait(600) == 0 and watcher.wait(600) == 0
    assert images(tmp_path / "out") == [36, 72, LAST]
    for name in ("weights.safetensors", "weights-ema0.safetensors"):
        again, undisturbed = load_weights(out / name), load_weights(kept / name)
        assert again.keys() == undisturbed.keys()
        assert all(torch.equal(again[key], undisturbed[key]) for key in again)
    rows = (tmp_path / "out" / "curve.jsonl").read_text().splitlines()
    assert [json.loads(row)["images"] for row in rows] == [36, 72, LAST]


@pytest.mark.slow
def test_two_ranks_score_the_same(world: World, kept: Path, scored: Path, tmp_path: Path) -> None:
    """Of the reference, too, which two ranks make to the byte."""
    paths = [f"record={world.root}/record.json", f"out={tmp_path}/reference.npz"]
    made = ["pipeline.reference", *SCORE[:2], *paths, f"data.path={world.pack}"]
    scores = ["pipeline.milestones", *world.words(kept, tmp_path / "scored")]
    for step in (made, scores):
        on_ranks(2, *step)
    files = [folder / "reference.npz" for folder in (world.root, tmp_path)]
    assert files[0].read_bytes() == files[1].read_bytes()
    one, two = (read_milestones(out / "curve.jsonl") for out in (scored, tmp_path / "scored"))
    for first, second in zip(one, two, strict=True):
        assert second.distance == pytest.approx(first.distance, rel=1e-6)
        assert second.images == first.images and second.num == first.num
