"""Whatever ends a training run, the same command resumes and makes the same weights."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from torch import Tensor
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing.api import SignalException

from pipeline import train
from pipeline.base.errors import UserError
from pipeline.base.processes import STOP_SIGNALS
from pipeline.data.reader import Reader, rows_at
from pipeline.flow import probability_path, workload
from pipeline.launching.agent import Agent, cause
from pipeline.training import checkpoint, preflight, snapshot_files, weights_file
from tests.conftest import ROOT, write_pack
from tests.on_ranks import train_on_ranks
from tests.test_train import outcome, run, words
from tests.training.infinite import InfiniteGradient

ENDLESS = ("train.images=1200000", "runtime.checkpoint_images=10000000")


class Launched:
    """A training run with two ranks under the launcher."""

    def __init__(self, pack: Path, out: Path, *more: str) -> None:
        command = [sys.executable, "-m", "pipeline.launch", "--gpus", "2", "--"]
        command += ["-m", "pipeline.train", *words(pack, out, *more)]
        self.out = out
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def wait_for(self, pattern: str) -> list[Path]:
        """The files of the folder of checkpoints that match; waits until there is one."""
        while not (found := sorted(self.out.glob(f"checkpoints/*/{pattern}"))):
            assert self.process.poll() is None, self.process.communicate()[0]
            time.sleep(0.002)
        return found

    def below(self) -> list[psutil.Process]:
        """The agent and the ranks."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def rank(self, number: int) -> psutil.Process:
        return next(p for p in self.below() if p.name() == f"python rank {number}")

    def end(self, seconds: float = 300) -> tuple[int, str]:
        """Status and output; nobody may be left."""
        below = self.below()
        output, _ = self.process.communicate(timeout=seconds)
        assert psutil.wait_procs(below, timeout=60)[1] == []
        return self.process.returncode, output


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# A run long enough to be killed in its middle, with a checkpoint at every step.
LONG = ("train.images=1200", "runtime.checkpoint_images=12", "runtime.keep_checkpoints=2")


@pytest.fixture(scope="module")
def reference(pack: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """Weights of the LONG run on two ranks that nothing disturbed."""
    out = tmp_path_factory.mktemp("reference")
    train_on_ranks(2, words(pack, out, *LONG))
    return outcome(out)[0]


def kill_a_rank(launched: Launched, number: int, step: int) -> None:
    """SIGKILL one rank once a checkpoint of `step` or a later one is on the disk."""
    while checkpoint.step_of(launched.wait_for("step-*.pt")[-1]) < step:
        assert launched.process.poll() is None, launched.process.communicate()[0]
        time.sleep(0.002)
    launched.rank(number).kill()


@pytest.mark.slow
def test_killed_ranks_start_again_then_end_and_the_same_command_goes_on(
    reference: dict[str, Tensor], pack: Path, tmp_path: Path
) -> None:
    launched = Launched(pack, tmp_path, *LONG, "launch.max_restarts=1")
    kill_a_rank(launched, 1, 10)
    kill_a_rank(launched, 0, 30)
    killed = time.monotonic()
    status, output = launched.end()
    assert time.monotonic() - killed < 10
    assert status == 128 + signal.SIGKILL, output
    said = r"error: rank {} \(process \d+\) was killed by SIGKILL: {}; .* from the last checkpoint"
    assert re.search(said.format(1, r"all start again \(1 of 1\)"), output)
    assert re.search(said.format(0, "all have ended"), output)
    assert output.count("resuming from step") == 1 and "Traceback" not in output

    launched = Launched(pack, tmp_path, *LONG, "launch.max_restarts=1")
    kill_a_rank(launched, 1, 50)
    status, output = launched.end()
    assert status == 0 and "all start again (1 of 1)" in output, output
    assert output.count("resuming from step") == 2
    weights, rows = outcome(tmp_path)
    assert same(weights, reference)
    assert [row["step"] for row in rows] == list(range(1, 101))


@pytest.mark.slow
def test_sigint_saves_on_all_ranks(pack: Path, tmp_path: Path) -> None:
    launched = Launched(pack, tmp_path, *ENDLESS)
    while launched.wait_for("metrics.jsonl")[0].stat().st_size == 0:
        time.sleep(0.01)
    launched.process.send_signal(signal.SIGINT)
    assert_saved(launched)


@pytest.mark.slow
def test_sigusr1_to_every_process_saves_once(pack: Path, tmp_path: Path) -> None:
    """As a scheduler sends it before the end of the time: to launcher, agent and ranks."""
    launched = Launched(pack, tmp_path, *ENDLESS, "launch.max_restarts=3")
    while launched.wait_for("metrics.jsonl")[0].stat().st_size == 0:
        time.sleep(0.01)
    for process in [*launched.below(), launched.process]:
        process.send_signal(signal.SIGUSR1)
    assert_saved(launched)


def assert_saved(launched: Launched) -> None:
    """It ended with 75, and the one checkpoint is of the last step that has a row."""
    status, output = launched.end()
    assert status == 75, output
    assert output.count("the same command resumes") == 1 and "Traceback" not in output
    [saved] = launched.out.glob("checkpoints/*/step-*.pt")
    rows = (saved.parent / "metrics.jsonl").read_text().splitlines()
    assert checkpoint.load(saved)["step"] == json.loads(rows[-1])["step"]


def stopped_while_writing(process: subprocess.Popen, folder: Path, half: str) -> bool:
    """Whether a training writes a file whose temporary name fits `half`; it stands still then."""
    if not list(folder.glob(half)):
        return False
    process.send_signal(signal.SIGSTOP)
    os.waitpid(process.pid, os.WUNTRACED)
    if list(folder.glob(half)):
        return True
    process.send_signal(signal.SIGCONT)
    return False


@pytest.mark.slow
def test_a_kill_in_the_middle_of_a_write_loses_nothing(pack: Path, tmp_path: Path) -> None:
    wide = ("model.channels=128", "train.images=2400", "runtime.checkpoint_images=12")
    command = [sys.executable, "-m", "pipeline.train", *words(pack, tmp_path, *wide)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    folder = tmp_path / "checkpoints"
    pattern = "*/.step-*.tmp"
    while not list(folder.glob("*/step-*.pt")) or not stopped_while_writing(
        process, folder, pattern
    ):
        assert process.poll() is None
    process.kill()
    process.wait()
    [half] = folder.glob(pattern)
    newest = checkpoint.checkpoints(half.parent)[-1]
    state = checkpoint.load_newest(half.parent)
    assert state is not None and state["step"] == checkpoint.step_of(newest)
    run(pack, tmp_path, *wide[:1], f"train.images={12 * (state['step'] + 1)}")
    assert not half.exists()


@pytest.mark.slow
def test_a_kill_while_averages_are_stored_changes_none(pack: Path, tmp_path: Path) -> None:
    """All that is stored up to two steps after the kill has the bits of a run without one."""
    power = ("train.ema=power", "train.ema_snapshot_images=12", "model.channels=128")
    killed = words(pack, tmp_path / "killed", *power, "train.images=2400")
    command = [sys.executable, "-m", "pipeline.train", *killed]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    while not stopped_while_writing(process, tmp_path, "killed/*/*/averages/.ema*.tmp"):
        assert process.poll() is None
    process.kill()
    process.wait()
    [half] = tmp_path.glob("killed/*/*/averages/.ema*.tmp")
    images = int(half.name.partition("-")[2].partition(".")[0]) + 24
    for name in ("killed", "whole"):
        run(pack, tmp_path / name, *power, f"train.images={images}")
    assert not half.exists()
    folders = [next(tmp_path.glob(f"{name}/*/*/averages")) for name in ("killed", "whole")]
    ours, theirs = (snapshot_files.stored(folder) for folder in folders)
    assert ours.keys() == theirs.keys() and len(ours) == 2 * images // 12
    for profile, path in ours.items():
        assert same(weights_file.load_weights(path), weights_file.load_weights(theirs[profile]))


def test_the_first_image_that_is_not_finite_is_named(
    pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def poisoned(
        reader: Reader, config: object, positions: np.ndarray, *more: object
    ) -> workload.Batch:
        batch = draw(reader, config, positions, *more)
        batch.x1[torch.from_numpy(positions) == 50] = torch.nan
        return batch

    draw = workload.draw
    monkeypatch.setattr(workload, "draw", poisoned)
    rows = ", ".join(map(str, rows_at(np.arange(48, 51), 0, 40)))
    expected = f"the loss is not finite at step 5, first at images 48 to 50 .*rows {rows} of"
    more = ("runtime.micro_batch=3", "runtime.log_images=96", "runtime.checkpoint_images=24")
    with pytest.raises(UserError, match=expected):
        run(pack, tmp_path, *more)
    folder = next(tmp_path.glob("checkpoints/*"))
    newest = checkpoint.load_newest(folder)
    assert newest is not None and newest["step"] == 4  # found when step 6 was to be saved
    assert all(torch.isfinite(value).all() for value in newest["net"].values())


def test_an_infinite_gradient_of_a_finite_loss_is_named(
    pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loss(*arguments: Tensor) -> Tensor:
        value = plain(*arguments)
        if value.is_meta:  # counted work
            return value
        calls.append(1)
        return InfiniteGradient.apply(value) if len(calls) == 3 else value

    calls: list[int] = []
    plain = probability_path.loss
    monkeypatch.setattr(probability_path, "loss", loss)
    with pytest.raises(UserError, match="the gradient is not finite at step 3, .*images 24 to 35"):
        run(pack, tmp_path)


def test_milestones_stay(pack: Path, tmp_path: Path) -> None:
    """Batch 12: multiples of 30 images are first reached or passed at steps 3, 5 and 8."""
    often = ("runtime.checkpoint_images=12", "runtime.keep_checkpoints=1")
    run(pack, tmp_path, *often, "runtime.milestone_images=30", "train.images=72")
    run(pack, tmp_path, *often)  # goes on without the key
    names = [path.name for path in checkpoint.checkpoints(next(tmp_path.glob("checkpoints/*")))]
    assert names == [f"step-000000000{k}.pt" for k in ("3.milestone", "5.milestone", 8)]


def test_a_milestone_is_saved_though_no_checkpoint_is_due(pack: Path, tmp_path: Path) -> None:
    run(pack, tmp_path, "runtime.checkpoint_images=100000", "runtime.milestone_images=30")
    folder = next(tmp_path.glob("checkpoints/*"))
    assert [checkpoint.step_of(path) for path in checkpoint.checkpoints(folder)] == [3, 5, 8]


def test_the_checkpoints_of_another_experiment_are_refused(pack: Path, tmp_path: Path) -> None:
    place = f"checkpoints={tmp_path / 'mine'}"
    run(pack, tmp_path, place, "train.images=48")
    with pytest.raises(UserError, match=r"another experiment: train.lr=0.0001 \(here 0.0002\); "):
        run(pack, tmp_path, place, "train.lr=2e-4")
    other = tmp_path / "pack"
    write_pack(other, num=40, size=8, classes=10, seed=1)
    with pytest.raises(UserError, match=r"another experiment: pack.images=\w+ \(here \w+\); "):
        run(other, tmp_path, place)
    run(pack, tmp_path, place, "runtime.micro_batch=3")  # a longer run on other hardware
    assert checkpoint.step_of(checkpoint.checkpoints(tmp_path / "mine")[-1]) == 8


def test_another_learning_rate_names_the_training_that_lies_there(
    pack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(pack, tmp_path, "train.images=48")
    assert "starting at step 0" not in capsys.readouterr().out
    run(pack, tmp_path, "train.images=48", "train.lr=2e-4")
    printed = capsys.readouterr().out
    sentence = r"starting at step 0; .*/checkpoints/\w+ has 48 images of another training, which"
    hint = r"; train\.start=(\S+/step-0000000004\.pt) starts from its weights\n"
    said = re.search(rf"{sentence} stay, with train\.lr=\S+ \(here 0\.0002\){hint}", printed)
    assert said and Path(said[1]).is_file()
    assert len(list(tmp_path.glob("checkpoints/*"))) == 2
    run(pack, tmp_path, "train.images=48")  # back: nothing to say
    assert "starting at step 0" not in capsys.readouterr().out


def test_a_given_folder_without_checkpoints_is_refused(
    pack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(place: Path, says: str) -> None:
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(UserError, match=says):
            run(pack, tmp_path / "out", f"checkpoints={place}")
        assert sorted(tmp_path.rglob("*")) == before

    run(pack, tmp_path / "out", "train.images=48")
    [folder] = tmp_path.glob("out/checkpoints/*")
    for parent in (folder.parent, tmp_path / "out", tmp_path):
        refused(parent, f"holds no checkpoint itself, but these folders do: {folder}: give")
    file = checkpoint.checkpoints(folder)[-1]
    refused(file, f"is a file: give the folder that holds it, {folder}$")
    refused(file / "below", f"is below {file}, which is a file: give a folder")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "holds no checkpoint: give a folder that does, or for a new run")
    with pytest.raises(UserError, match=r"out=.* is a file: give a folder"):
        run(pack, file)
    # One that a run was killed in before its first checkpoint
    (tmp_path / "empty" / "lock").touch()
    capsys.readouterr()
    run(pack, tmp_path / "out", f"checkpoints={tmp_path / 'empty'}", "train.images=48")
    assert "empty holds no checkpoint yet: starting at step 0" in capsys.readouterr().out


def test_a_full_disk_is_found_before_the_first_step(
    pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _ = run(pack, tmp_path, "runtime.keep_checkpoints=1")
    saved = next(tmp_path.glob("checkpoints/*/step-*.pt")).stat().st_size
    size = preflight.state_bytes(train.prepare(words(pack, tmp_path), 1))
    # weights, two moments, the average and its remainder, in float32
    assert size == 5 * 4 * sum(value.numel() for value in one.values())
    assert size < saved < 1.3 * size + 10**5
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2.9 * size))
    with pytest.raises(UserError, match=r"3 checkpoints of [\d.]+ GB need .* has [\d.]+ GB free"):
        preflight.check(train.prepare(words(pack, tmp_path / "new"), 1))
    preflight.check(train.prepare(words(pack, tmp_path), 1))  # what lies there counts
    preflight.check(train.prepare(words(pack, tmp_path / "new", "runtime.keep_checkpoints=1"), 1))
    with pytest.raises(UserError, match="5 checkpoints"):  # keep 1, one under way, 3 milestones
        more = ("runtime.keep_checkpoints=1", "runtime.milestone_images=30")
        preflight.check(train.prepare(words(pack, tmp_path / "new", *more), 1))


def test_a_pack_that_changed_on_the_disk_is_found(pack: Path, tmp_path: Path) -> None:
    copy = tmp_path / "pack"
    shutil.copytree(pack, copy)
    with (copy / "images.npy").open("r+b") as file:
        file.seek(-5, os.SEEK_END)
        file.write(b"?")
    with pytest.raises(UserError, match="images.npy has changed"):
        preflight.check(train.prepare(words(copy, tmp_path), 1))


def failure(status: int, timestamp: int) -> SimpleNamespace:
    return SimpleNamespace(exitcode=status, timestamp=timestamp)


@pytest.mark.parametrize(
    ("failures", "rank"),
    [
        ({0: failure(1, 5), 1: failure(-9, 6)}, 1),  # rank 0 only lost rank 1
        ({0: failure(1, 5), 1: failure(2, 6)}, 1),  # rank 1 has said why
        ({0: failure(-15, 5), 1: failure(1, 6)}, 1),  # the agent ended rank 0
        ({0: failure(1, 6), 1: failure(1, 5)}, 1),
    ],
)
def test_the_rank_that_failed_first_is_the_cause(failures: dict, rank: int) -> None:
    assert cause(failures)[0] == rank


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch) -> Iterator[Agent]:
    """An agent whose ranks take no time to stop; the signals' handlers are put back."""
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    monkeypatch.setattr(LocalElasticAgent, "__init__", lambda *_, **__: None)
    monkeypatch.setattr(LocalElasticAgent, "_shutdown", lambda *_: None)
    yield Agent()
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_signal_while_ranks_stop_for_a_restart_ends_the_job(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shutdown(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)  # again, as schedulers do: no end of the wait

    monkeypatch.setattr(LocalElasticAgent, "_shutdown", shutdown)
    with pytest.raises(SignalException) as told:
        agent._stop_workers(SimpleNamespace())
    assert told.value.sigval == signal.SIGTERM


def test_a_signal_while_nodes_meet_for_a_restart_ends_the_job(agent: Agent) -> None:
    agent._stop_workers(SimpleNamespace())
    with pytest.raises(SignalException):
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(5)


@pytest.mark.slow
def test_restarts_by_hand_under_torchrun_itself(
    reference: dict[str, Tensor], pack: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node=2", "--max-restarts=1", "-m", "pipeline.train"]
    launched = Launched.__new__(Launched)
    launched.out = tmp_path
    launched.process = subprocess.Popen(
        [*command, *words(pack, tmp_path, *LONG)],
        cwd=ROOT,
        env={**os.environ, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    kill_a_rank(launched, 1, 10)
    status, output = launched.end()
    assert status == 0, output
    assert "rank 0 lost another rank" in output
    assert same(outcome(tmp_path)[0], reference)
