"""The largest micro-batch that a GPU has memory for, measured before the first step."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from pipeline.base.errors import OneRankError
from pipeline.compute import execution
from pipeline.compute.distributed import Ranks
from pipeline.compute.execution import free_memory
from pipeline.training.workload import Workload

HEADROOM = 0.9  # share of the free memory to plan with; the rest is for fragments and for NCCL


def divisors(share: int) -> list[int]:
    """All divisors of `share`, the largest first."""
    return [n for n in range(share, 0, -1) if share % n == 0]


def largest_that_fits(share: int, limit_bytes: int, measure: Callable[[int], int]) -> int:
    """The largest divisor of `share` images whose pass needs at most `limit_bytes`.

    `measure(n)` are the bytes that a pass over n images takes. It is asked for 1 and 2 images and
    taken to be a straight line. Raises UserError if not even one fits.
    """

    # One image at least
    first_bytes = measure(1)
    if first_bytes > limit_bytes:
        raise OneRankError(
            f"training on a batch of one takes {first_bytes / 1e9:.2f} GB beside the weights but "
            f"{limit_bytes / 1e9:.2f} GB are left: share the weights out over several GPUs "
            "(runtime.strategy=fsdp2), or use a smaller model or a larger GPU"
        )
    if share == 1:
        return 1

    # A straight line
    next_bytes = max(1, measure(2) - first_bytes)
    most = 1 + (limit_bytes - first_bytes) // next_bytes
    return next(n for n in divisors(share) if n <= most)


def largest_that_runs(share: int, first: int, attempt: Callable[[int], None], group: Ranks) -> int:
    """The largest divisor of `share` up to `first` for which `attempt(n)` has memory on all ranks.

    `first` may differ between the ranks. Raises UserError if none does.
    """
    # The ranks' common start
    start = int(group.minimum(torch.tensor(first, device=group.device)))

    # Smaller until it runs
    for images in (n for n in divisors(share) if n <= start):
        fits = torch.tensor(int(_has_memory(attempt, images)), device=group.device)
        if group.minimum(fits):
            return images
    raise OneRankError(
        f"not even a batch of one fits on {group.device} with another rank's: use a smaller model, "
        "runtime.strategy=fsdp2, or a GPU that nobody else uses"
    )


def _has_memory(attempt: Callable[[int], None], images: int) -> bool:
    try:
        attempt(images)
        return True
    except RuntimeError as error:  # only after this block are the tensors of the failed pass free
        if not execution.is_out_of_memory(error):
            raise
    torch.cuda.empty_cache()
    return False


def rehearse(
    model: nn.Module, workload: Workload, precision: str, images: int, device: torch.device
) -> None:
    """One forward and backward pass over `images` items of zeros, as a training step makes it.

    Gradients are added to; random numbers are drawn as if there had been no pass.
    """
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        batch = workload.zeros(images, device)
        with execution.autocast(precision, device):
            loss = workload.loss(model, batch)
        loss.backward()


def measured(
    model: nn.Module, workload: Workload, precision: str, share: int, group: Ranks, sharded: bool
) -> int:
    """The largest divisor of `share` that fits beside all that training keeps on a CUDA device.

    `model` lies there with its averages, and is not wrapped in DDP yet, so that ranks can run out
    of memory one by one. Its gradients are dropped afterwards.
    """
    # Memory left for activations
    device = group.device
    before = torch.cuda.memory_allocated(device)
    free = free_memory(device) + torch.cuda.memory_reserved(device) - before
    later = _comes_later(model, sharded)
    limit = int(HEADROOM * free) - later

    def attempt(images: int) -> None:
        rehearse(model, workload, precision, images, device)

    def measure(images: int) -> int:
        torch.cuda.reset_peak_memory_stats(device)
        if sharded:  # no rank can leave a pass that all make together
            with execution.enough_memory(images, "runtime.micro_batch", device, workload.unit):
                attempt(images)
        elif not _has_memory(attempt, images):
            return max(limit, 0) + 1
        return torch.cuda.max_memory_allocated(device) - before

    # eager passes take more than compiled ones, and need no compilation for sizes used once
    with torch.compiler.set_stance("force_eager"):
        with execution.room_for_one(device):
            attempt(1)  # makes the gradients: without them they hide what an image takes
        first = largest_that_fits(share, limit, measure)

    # The same on all ranks
    if sharded:
        images = int(group.minimum(torch.tensor(first, device=device)))
        with execution.enough_memory(images, "runtime.micro_batch", device, workload.unit):
            attempt(images)
    else:
        images = largest_that_runs(share, first, attempt, group)

    # A report for people
    model.zero_grad(set_to_none=True)
    used = torch.cuda.max_memory_allocated(device) + later
    if group.first:
        total = torch.cuda.get_device_properties(device).total_memory
        print(
            f"micro-batch {images} of {share} {workload.unit} a process: "
            f"{used / 1e9:.0f} of {total / 1e9:.0f} GB",
            flush=True,
        )
    return images


def _comes_later(model: nn.Module, sharded: bool) -> int:
    """Bytes that the first step adds: two moments; and, if sharded, the whole gradient, which
    is only shared out after the last micro-batch.
    """
    parameters: list[Any] = list(model.parameters())
    if not sharded:
        return sum(2 * p.nbytes for p in parameters)
    return sum(2 * p.to_local().nbytes + p.nbytes for p in parameters)
