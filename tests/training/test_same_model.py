"""The promise, at length: 60 steps give the same model on any number of ranks, killed or not."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor

from pipeline import train as step
from pipeline.training import checkpoint
from tests.conftest import write_pack
from tests.on_ranks import processes_of_ranks, train_on_ranks
from tests.test_train import difference, losses, outcome

BATCH, STEPS = 24, 60
PASSES = {1: (2, 4), 2: (1, 2, 4), 3: (1, 4), 4: (1, 3)}  # per step, by number of ranks
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


def words(pack: Path, out: Path, *more: str) -> list[str]:
    return [*WORDS, f"data.path={pack}", f"out={out}", *more]


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
    """One rank, one pass per step, in this process."""
    out = tmp_path_factory.mktemp("alone")
    step.main(words(pack, out, f"runtime.micro_batch={BATCH}"))
    return outcome(out)


@pytest.mark.slow
@pytest.mark.parametrize("world", PASSES)
def test_ranks_and_accumulation(alone: Outcome, pack: Path, tmp_path: Path, world: int) -> None:
    """The same ranks train with each number of passes."""
    micro = [f"runtime.micro_batch={BATCH // world // passes}" for passes in PASSES[world]]
    runs = [words(pack, tmp_path / word, word) for word in micro]
    if world > 1:
        train_on_ranks(world, *runs)
    else:
        for run in runs:
            step.main(run)
    for word in micro:
        same(alone, outcome(tmp_path / word))


def newest_step(out: Path) -> int:
    return max((checkpoint.step_of(p) for p in out.glob("checkpoints/*/step-*.pt")), default=0)


@pytest.mark.slow
def test_killed_and_resumed_on_other_ranks(alone: Outcome, pack: Path, tmp_path: Path) -> None:
    """Two ranks, then three, one and four, each but the last killed ten steps or more later."""
    keys = words(pack, tmp_path, f"runtime.checkpoint_images={10 * BATCH}")
    for world, until in ((2, 10), (3, 20), (1, 30)):
        with ThreadPoolExecutor(1) as thread:
            training = thread.submit(train_on_ranks, world, keys)
            while newest_step(tmp_path) < until:
                assert not training.done()
                time.sleep(0.005)
            running = processes_of_ranks()
            assert len(running) == world
            for rank in running:
                rank.kill()
            with pytest.raises(AssertionError):
                training.result()
        assert not (tmp_path / "weights.safetensors").exists()
    train_on_ranks(4, keys)
    same(alone, outcome(tmp_path))
    (state,) = {p.parent for p in tmp_path.glob("checkpoints/*/metrics.jsonl")}
    rows = [json.loads(line) for line in (state / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
