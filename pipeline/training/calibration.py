"""A few training steps on made-up images: how fast this machine trains, and in what memory."""

import gc
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch

from pipeline.compute import execution
from pipeline.compute.distributed import Ranks, pick_device
from pipeline.config.load import validate
from pipeline.config.schema import Config
from pipeline.config.words import merge
from pipeline.training.batch_size import micro_batch
from pipeline.training.flops import mfu, training_flops
from pipeline.training.job import Job
from pipeline.training.meter import peak_memory
from pipeline.training.trainer import Trainer
from pipeline.training.workload import Workload

# Length of the measurement
STEPS, SECONDS = 20, 60.0  # timed steps, fewer if they would take longer
WARM_UP = 1  # untimed steps: compilation, choice of kernels, first allocations
CPU_STEP = 2e11  # operations of a step on a CPU, at most: a second or two of a few cores


class Calibration(NamedTuple):
    """The speed that one process reached in `steps` steps of `batch` images."""

    # The speed
    images_per_s: float
    # Where it was measured
    peak_bytes: int  # of tensors on a GPU, of the process on a CPU
    batch: int
    steps: int
    device: str
    mfu: float | None


def images_a_step(config: Config, workload: Workload, world: int, cpu: bool) -> int:
    """One micro-batch of a rank; on a CPU as much of it as stays within CPU_STEP."""
    micro = micro_batch(config, world, workload.most_items)
    return max(1, min(micro, int(CPU_STEP / training_flops(workload)))) if cpu else micro


def one_pass(config: Config, batch: int) -> Config:
    """`config` with `batch` images a step in one pass, each with any noise."""
    small = {
        "train": {"batch": batch, "coupling": "independent"},
        "runtime": {"micro_batch": batch},
    }
    return validate(merge(config.model_dump(), small))


def timed_steps(step: Callable[[], None], device: torch.device, most: float) -> tuple[int, float]:
    """Take up to STEPS steps within about `most` seconds; how many, and their seconds."""
    finish(device)
    began, steps = time.monotonic(), 0
    while steps < STEPS and (steps == 0 or time.monotonic() - began < most * steps / (steps + 1)):
        step()
        steps += 1
    finish(device)
    return steps, time.monotonic() - began


def finish(device: torch.device) -> None:
    """Wait until a CUDA device has done all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def forget_peak(device: torch.device) -> None:
    """Let the peak of memory begin anew, as in a process in which nothing was trained before."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.init()  # which the reset does not do by itself
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):  # a kernel or container without it
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets the peak resident set


def calibrate(
    config: Config,
    workload_of: Callable[[Config], Workload],
    world: int = 1,
    seconds: float = SECONDS,
) -> Calibration:
    """Train for up to STEPS steps in this process, on its device, as one of `world` ranks would.

    `workload_of` makes the workload of a configuration. Raises UserError if the device is missing
    or the micro-batch does not fit on it.
    """
    # Work of one rank
    device = pick_device(config.runtime.device, 0)
    forget_peak(device)
    batch = images_a_step(config, workload_of(config), world, device.type == "cpu")
    config = one_pass(config, batch)
    # Training for a moment
    with TemporaryDirectory() as folder:
        job = Job(config, workload_of(config), Path(folder), Path(folder) / "checkpoints")
        with execution.enough_memory(batch, "runtime.micro_batch", device, job.workload.unit):
            trainer = Trainer(job, Ranks(0, 1, device))
            for _ in range(WARM_UP):
                trainer.train_step()
            steps, taken = timed_steps(trainer.train_step, device, seconds)
    trainer.check_finite()
    # Share of the peak
    rate, meter = steps * batch / taken, trainer.meter
    use = mfu(rate, meter.flops, meter.name)
    return Calibration(rate, peak_memory(device), batch, steps, meter.name, use)
