"""A few training steps on made-up images: how fast this machine trains, and in what memory."""

import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import torch

from pipeline.compute import execution
from pipeline.compute.distributed import Ranks, pick_device
from pipeline.config.load import validate
from pipeline.config.schema import Config
from pipeline.config.words import merge
from pipeline.data.pack import Pack
from pipeline.networks.flops import mfu, training_flops
from pipeline.training.batch_size import micro_batch
from pipeline.training.meter import peak_memory
from pipeline.training.trainer import Job, Trainer

IMAGES = 2048  # made up; of 64 px they take 25 MB
STEPS, SECONDS = 20, 60.0  # timed steps, fewer where they would take longer
WARM_UP = 1  # untimed steps: compilation, choice of kernels, first allocations
CPU_STEP = 2e11  # operations of a step on a CPU, at most: a second or two of a few cores


class Calibration(NamedTuple):
    """What one process reached in `steps` steps of `batch` images."""

    images_per_s: float
    peak_bytes: int  # of tensors on a GPU, of the process on a CPU
    batch: int
    steps: int
    device: str
    mfu: float | None


def made_up_pack(resolution: int, num_classes: int, num: int = IMAGES) -> Pack:
    """`num` images of noise in host memory, their labels in turn."""
    images = np.random.default_rng(0).integers(0, 256, (num, resolution, resolution, 3), np.uint8)
    classes = [f"class {k}" for k in range(num_classes)]
    record = {
        "resolution": resolution, "num_images": num, "classes": classes,
        "sha256": {"images": "made up"},
    }  # fmt: skip
    return Pack(images, np.arange(num, dtype=np.int64) % num_classes, record)


def images_a_step(config: Config, num_classes: int, world: int, cpu: bool) -> int:
    """One micro-batch of a rank; on a CPU as much of it as stays within CPU_STEP."""
    micro = micro_batch(config, world)
    if not cpu:
        return micro
    work = training_flops(config.model, num_classes, config.data.resolution)
    return max(1, min(micro, int(CPU_STEP / work)))


def made_up_job(config: Config, num_classes: int, batch: int, folder: Path) -> Job:
    """A job of `config` with `batch` images a step in one pass, on made-up images."""
    small = {
        "train": {"batch": batch, "coupling": "independent"},
        "runtime": {"micro_batch": batch},
    }
    config = validate(merge(config.model_dump(), small))
    pack = made_up_pack(config.data.resolution, num_classes)
    return Job(config, pack, folder, folder / "checkpoints", steps=2**40)


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


def calibrate(
    config: Config, num_classes: int, world: int = 1, seconds: float = SECONDS
) -> Calibration:
    """Train for up to STEPS steps in this process, on its device, as one of `world` ranks would.

    Raises UserError where the device is missing or the micro-batch does not fit on it.
    """
    device = pick_device(config.runtime.device, 0)
    batch = images_a_step(config, num_classes, world, device.type == "cpu")
    with TemporaryDirectory() as folder:
        job = made_up_job(config, num_classes, batch, Path(folder))
        with execution.enough_memory(batch, "runtime.micro_batch", device):
            trainer = Trainer(job, Ranks(0, 1, device))
            for _ in range(WARM_UP):
                trainer.train_step()
            steps, taken = timed_steps(trainer.train_step, device, seconds)
    trainer.check_finite()
    rate, meter = steps * batch / taken, trainer.meter
    use = mfu(rate, meter.flops, meter.name)
    return Calibration(rate, peak_memory(device), batch, steps, meter.name, use)
