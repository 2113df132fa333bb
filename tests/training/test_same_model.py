"""The promise, at length: 60 steps give the same model on any number of ranks, killed or not.

Started by torchrun, this module is a rank that trains with all numbers of passes.
"""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor

from pipeline import train as step
from pipeline.compute.distributed import ranks
from pipeline.training import loop
from tests.conftest import ROOT, write_pack
from tests.test_train import difference, losses, outcome

BATCH, STEPS = 48, 60
WORDS = [
    "experiment=tiny",
    "model.channel_mult=[1]",
    "model.attention_at=[]",
    "model.dropout=0.2",
    f"train.images={BATCH * STEPS}",
    f"train.batch={BATCH}",
    "train.lr=1e-4",
    "train.ema_halflife_images=[500,0]",
    "train.flip=true",
    f"runtime.log_images={BATCH}",
    "runtime.progress_seconds=1000",
]
Outcome = tuple[dict[str, Tensor], list[dict]]


def command(world: int, pack: Path, out: Path, *more: str) -> list[str]:
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    words = [*WORDS, f"data.path={pack}", f"out={out}", *more]
    return [*run, f"--nproc-per-node={world}", "-m", "pipeline.train", *words]


def train(world: int, pack: Path, out: Path, *more: str) -> Outcome:
    done = subprocess.run(
        command(world, pack, out, *more), cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return outcome(out)


def same(one: Outcome, other: Outcome) -> None:
    """Losses to 1e-5 relative at every step, averaged weights to 1e-5 in relative norm."""
    assert [row["step"] for row in other[1]] == list(range(1, STEPS + 1))
    np.testing.assert_allclose(losses(other[1]), losses(one[1]), rtol=1e-5)
    assert difference(one[0], other[0]) < 1e-5


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pack")
    write_pack(folder, num=200, size=8, classes=10)
    return folder


@pytest.fixture(scope="module")
def alone(pack: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """One rank, one pass per step."""
    return train(1, pack, tmp_path_factory.mktemp("alone"), f"runtime.micro_batch={BATCH}")


PASSES = (1, 2, 4)


@pytest.fixture(scope="module")
def accumulated(
    request: pytest.FixtureRequest, pack: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[int, Path]:
    """Trainings by one number of ranks, which make them one after the other: out/<passes>."""
    world, out = request.param, tmp_path_factory.mktemp("accumulated")
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    run += [f"--nproc-per-node={world}", "-m", "tests.training.test_same_model", str(pack)]
    done = subprocess.run([*run, str(out)], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return world, out


@pytest.mark.slow
@pytest.mark.parametrize("accumulated", [1, 2, 3, 4], indirect=True)
@pytest.mark.parametrize("passes", PASSES)
def test_ranks_and_accumulation(alone: Outcome, accumulated: tuple[int, Path], passes: int) -> None:
    same(alone, outcome(accumulated[1] / str(passes)))


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(2, 3), (3, 1), (1, 4)])
def test_killed_at_step_23_and_resumed_on_other_ranks(
    alone: Outcome, pack: Path, tmp_path: Path, before: int, after: int
) -> None:
    every = f"runtime.checkpoint_images={23 * BATCH}"
    process = subprocess.Popen(
        command(before, pack, tmp_path, every), cwd=ROOT, start_new_session=True
    )
    while not list(tmp_path.glob("checkpoints/*/step-0000000023.pt")):
        assert process.poll() is None
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "weights.safetensors").exists()
    same(alone, train(after, pack, tmp_path, every))
    (state,) = {p.parent for p in tmp_path.glob("checkpoints/*/metrics.jsonl")}
    rows = [json.loads(line) for line in (state / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))


if __name__ == "__main__":
    with ranks("cpu", {}, 60) as group:  # once: a store keeps the addresses of a first group
        loop.ranks = lambda *_: nullcontext(group)
        for passes in PASSES:
            micro = f"runtime.micro_batch={BATCH // group.world // passes}"
            out = Path(sys.argv[2], str(passes))
            step.main([*WORDS, f"data.path={sys.argv[1]}", f"out={out}", micro])
