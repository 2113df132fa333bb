"""Training over two machines, which are network namespaces of this one."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests import nodes
from tests.conftest import ROOT
from tests.on_ranks import train_on_ranks
from tests.pages import commands, for_here
from tests.test_train import losses, outcome, words

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        bool(nodes.missing()), reason=f"NOT TESTED: two machines need {nodes.missing()}"
    ),
]
TRAINING = ("train.images=960", "runtime.checkpoint_images=24", "runtime.micro_batch=3")
NETWORK = 78  # beside that of test_cluster.py
Machines = Callable[[int], list[str]]
Outcome = tuple[dict[str, torch.Tensor], list[dict]]


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    """Two machines that share this one's disk."""
    with nodes.nodes(2, tmp_path, NETWORK) as inside:
        yield inside


def start(
    before: list[str], gpus: int, training: list[str], out: Path, *launch: str
) -> subprocess.Popen:
    """The launcher on one machine."""
    out.mkdir(exist_ok=True)
    command = [*before, sys.executable, "-m", "pipeline.launch", "--gpus", str(gpus), *launch]
    command += ["--threads", str(gpus), "--", "-m", "pipeline.train", *training, f"out={out}"]
    with (out / "printed").open("ab") as file:
        return subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)


def on_both(machines: Machines, pack: Path, out: Path, *launch: str) -> list[subprocess.Popen]:
    """A rank on each of two machines: the same command on both."""
    training = words(pack, out, *TRAINING)
    return [start(machines(k), 1, training, out, *MEETING, *launch) for k in (1, 2)]


def wait_for_checkpoint(out: Path, runs: list[subprocess.Popen], before: set[Path]) -> None:
    """Wait until there is another one than `before`."""
    while not checkpoints(out) - before:
        assert all(run.poll() is None for run in runs), (out / "printed").read_text()
        time.sleep(0.02)


def checkpoints(out: Path) -> set[Path]:
    """Those of a training."""
    return set(out.glob("checkpoints/*/step-*.pt"))


MEETING = (
    *("launcher=torchrun", "launch.nnodes=2", "launch.rdzv_endpoint=tn1:29500"),
    "launch.join_seconds=60",
)


def on_one(ranks: int, training: list[str], out: Path) -> Outcome:
    """Weights and curve of so many ranks on one machine."""
    train_on_ranks(ranks, [*training, f"out={out}"])
    return outcome(out)


@pytest.fixture(scope="module")
def four(pack: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """Weights and curve of the page's training by four ranks on one machine."""
    training = ["experiment=tiny", f"data.path={pack}"]
    return on_one(4, training, tmp_path_factory.mktemp("four"))


@pytest.fixture(autouse=True)
def _two_devices_each(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PIPELINE_GPU_IDS", "0,1,2,3")
    monkeypatch.setenv("PIPELINE_LEASE_DIR", str(tmp_path / "leases"))


def same(one: Outcome, other: Outcome) -> bool:
    """Whether weights and losses are the same to the last bit."""
    return losses(one[1]) == losses(other[1]) and all(
        torch.equal(one[0][name], value) for name, value in other[0].items()
    )


def test_a_machine_that_dies_ends_the_job_or_with_restarts_is_waited_for(
    machines: Machines, pack: Path, tmp_path: Path
) -> None:
    """The same commands go on; then it dies again, and comes back."""
    out = tmp_path / "out"
    runs = on_both(machines, pack, out)
    wait_for_checkpoint(out, runs, set())
    nodes.power_off(2, NETWORK)
    assert runs[0].wait(300) != 0 and runs[1].wait(60) != 0
    before = checkpoints(out)
    first, second = on_both(machines, pack, out, "launch.max_restarts=2")
    wait_for_checkpoint(out, [first, second], before)
    nodes.power_off(2, NETWORK)
    assert second.wait(60) != 0
    time.sleep(3)
    training = words(pack, out, *TRAINING)
    again = start(machines(2), 1, training, out, *MEETING, "launch.max_restarts=2")
    assert (first.wait(600), again.wait(600)) == (0, 0), (out / "printed").read_text()
    assert (out / "printed").read_text().count("resuming from step") == 2
    one = tmp_path / "one"
    assert same(outcome(out), on_one(2, words(pack, one, *TRAINING), one))


@pytest.mark.parametrize("command", commands("several-nodes"))
def test_the_same_command_on_two_machines_of_two_is_one_of_four(
    machines: Machines, pack: Path, tmp_path: Path, four: Outcome, command: str
) -> None:
    """Lines of the page, with two processes on each machine instead of eight."""
    small = {"PACK": str(pack), "experiment=imagenet": "experiment=tiny", "node1": "tn1"}
    small |= {"--gpus 8": "--gpus 2", "-node=8": "-node=2"}
    line = f"{for_here(command, small)} out={tmp_path}/out"
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    shell = ["env", f"PATH={path}", "OMP_NUM_THREADS=1", "bash", "-c", line]
    runs = [
        subprocess.Popen(
            [*machines(k), *shell],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for k in (1, 2)
    ]
    printed = [run.communicate(timeout=600)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], printed
    assert "train: 640 images" in "".join(printed)
    assert same(outcome(tmp_path / "out"), four)
