"""The micro-batch that `runtime.micro_batch=auto` finds, and the sentence if memory is short.

The network is that of `imagenet` at 64 px, whose whole batch fits on no GPU that is sold today.
"""

import gc
from collections.abc import Callable
from tempfile import TemporaryDirectory

import torch

from pipeline.base.errors import UserError
from pipeline.bench.gpu_check.check import Check, Figure, NotApplicable
from pipeline.bench.gpu_check.inputs import imagenet_job, made_up_job
from pipeline.compute import execution
from pipeline.compute.distributed import Ranks
from pipeline.training.fitting import HEADROOM, divisors
from pipeline.training.trainer import Trainer

KEY = "runtime.micro_batch"
BATCH = 1024  # images of a step
NO_MEMORY = "the memory of a CPU is not measured"
LEAST = HEADROOM - 0.05  # of the memory, used by a size that was not taken; the rest is torch's own
SHARE = 0.03  # of the memory, while it is made short


def next_size(images: int, batch: int) -> int | None:
    """The next larger micro-batch of a step; None: `images` are all of it."""
    return min((n for n in divisors(batch) if n > images), default=None)


def verdict(chosen: int, larger: int | None, used: float | None) -> Figure:
    """The figure of a micro-batch that trains: the share of the memory that the next size uses.

    `used` None: it does not train. If it trains in less than LEAST it should have been taken.
    """
    note = f"micro-batch {chosen} of {BATCH}"
    if larger is None:
        return Figure(1.0, 1.0, "of the memory", note=f"{note}, the cap")
    if used is None:
        return Figure(1.0, 1.0, "of the memory", LEAST, f"{note}; {larger} does not train")
    return Figure(used, 1.0, "of the memory", LEAST, f"{note}; {larger} trains, too")


def trained_images(device: torch.device, micro: int | str) -> int:
    """The micro-batch of a trainer that has taken two steps."""
    batch = BATCH if micro == "auto" else micro  # of a given size one pass will do
    with TemporaryDirectory() as folder:
        words = (f"train.batch={batch}", f"{KEY}={micro}")
        trainer = Trainer(imagenet_job(folder, *words), Ranks(0, 1, device))
        for _ in range(2):
            trainer.train_step()
        torch.cuda.synchronize(device)
    return trainer.micro


def share_used(device: torch.device, micro: int) -> float | None:
    """The share of the memory that training with a micro-batch uses; None: it is too little."""
    gc.collect()  # an earlier trainer
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    try:
        trained_images(device, micro)
    except RuntimeError as error:
        if not execution.is_out_of_memory(error):
            raise
        return None
    total = torch.cuda.get_device_properties(device).total_memory
    return torch.cuda.max_memory_allocated(device) / total


def auto(device: torch.device) -> Figure:
    """The micro-batch that is found trains, and the next size does not."""
    chosen = trained_images(device, "auto")
    larger = next_size(chosen, BATCH)
    used = None if larger is None else share_used(device, larger)
    return verdict(chosen, larger, used)


def sentence(attempt: Callable[[], object], device: torch.device) -> Figure:
    """The error of a pass that has too little memory names the key."""
    try:
        with execution.enough_memory(BATCH, KEY, device):
            attempt()
    except UserError as error:
        text = str(error)
        return Figure(text.count(KEY), 1, "keys named", 1, text[:80])
    raise NotApplicable("the pass had memory enough")


def short_of_memory(device: torch.device) -> Figure:
    """A step that is given a part of the memory, and a step after it with all of it."""
    words = ("data.resolution=64", f"train.batch={4 * BATCH}", f"{KEY}={4 * BATCH}")
    with TemporaryDirectory() as folder:
        trainer = Trainer(made_up_job(folder, *words), Ranks(0, 1, device))
        torch.cuda.set_per_process_memory_fraction(SHARE, device)
        try:
            figure = sentence(trainer.train_step, device)
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, device)
        small = Trainer(made_up_job(folder), Ranks(0, 1, device))
        small.train_step()
        small.check_finite()
    return figure


CHECKS = (
    Check("micro_batch: auto", auto, f"a plan for {HEADROOM:.0%} of the memory", NO_MEMORY),
    Check("too little memory", short_of_memory, "the sentence names the key once", NO_MEMORY),
)
