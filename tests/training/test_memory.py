"""The model of a step's memory against what real passes on the CPU allocate."""

from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from pipeline.compute.distributed import Ranks
from pipeline.flow.made_up import made_up
from pipeline.training.job import Job
from pipeline.training.memory import StepMemory, step_memory
from pipeline.training.trainer import Trainer
from tests.conftest import resolved
from tests.training.allocations import most_allocated

CPU = torch.device("cpu")


def test_largest_is_the_inverse_of_peak() -> None:
    memory = StepMemory(state=100, fixed=20, item=7)
    assert memory.peak(3) == 141
    assert [memory.largest(limit) for limit in (119, 126, 127, 141, 147)] == [0, 0, 1, 3, 3]


def test_the_state_by_hand() -> None:
    """Two averages, of which one has a remainder: 4 + 2 + 1 numbers of 4 bytes a parameter."""
    config = resolved("experiment=imagenet", "data.source=train", "data.resolution=64")
    memory = step_memory(config, made_up(config, 1000), CPU)
    with torch.device("meta"):
        parameters = sum(p.numel() for p in made_up(config, 1000).build().parameters())
    assert parameters == pytest.approx(296e6, rel=0.01)
    assert memory.state == 7 * 4 * parameters
    # bf16 copies of the weights of convolutions and linear layers, and hardly anything else
    assert memory.fixed == pytest.approx(2 * parameters, rel=0.02)


def peak_of_a_step(trainer: Trainer) -> int:
    """Most bytes that a step allocates on the CPU beyond those that were there before it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as measured:
        trainer.train_step()
    return most_allocated(measured)


@pytest.mark.parametrize(
    ("precision", "micro"),
    [
        ("fp32", 4),
        pytest.param("fp32", 16, marks=pytest.mark.slow),
        pytest.param("bf16", 8, marks=pytest.mark.slow),
    ],
)
def test_a_real_step_takes_what_the_model_says(tmp_path: Path, precision: str, micro: int) -> None:
    words = (
        "experiment=smoke", "data.source=shapes", f"train.precision={precision}",
        f"train.batch={2 * micro}", f"runtime.micro_batch={micro}", "train.warmup_images=0",
    )  # fmt: skip
    config = resolved(*words)
    memory = step_memory(config, made_up(config, 10), CPU)
    job = Job(config, made_up(config, 10), tmp_path, tmp_path / "checkpoints")
    trainer = Trainer(job, Ranks(0, 1, CPU))
    trainer.train_step()  # makes the moments
    weights = sum(p.nbytes for p in trainer.net.parameters())
    trainer.optimizer.zero_grad(set_to_none=True)
    kept = memory.state - weights  # all but the gradients is there before the step
    # what a backward pass needs for a moment is not in the model
    assert 1.0 < peak_of_a_step(trainer) / (memory.peak(micro) - kept) < 1.25
