"""Training steps: images/s of our trainer against a plain one (pipeline.bench.plain).

Both take the same network, batch, images, times, noise and labels, in one process. Without a GPU:
the network of `small`, the plain trainer in float32, ours in float32 and under bf16 autocast. On a
GPU: the imagenet network at 64 px with the largest batch that fits, the plain trainer under fp16
autocast, ours under bf16, and a table of where the time of our step goes. Before anything is timed
the losses of all are compared, without dropout, whose masks are each trainer's own.
"""

import gc
import re
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from pipeline.bench import record
from pipeline.bench.plain import PlainTrainer, one_rank
from pipeline.compute.distributed import Ranks
from pipeline.config.load import load_step
from pipeline.flow.made_up import made_up
from pipeline.images.sources.find import resolve_image_set
from pipeline.training import flops
from pipeline.training.calibration import finish, one_pass
from pipeline.training.job import Job
from pipeline.training.trainer import Trainer
from pipeline.workflow import sizes

AnyTrainer = PlainTrainer | Trainer

# Limits
TOLERANCE = 1e-3  # relative difference of two losses
LARGEST = 512  # images a step, if a GPU's memory holds them
# What is trained
CPU_WORDS = ("experiment=small", "data.source=shapes")
GPU_WORDS = ("experiment=imagenet", "data.source=train", "data.resolution=64")

# Kinds of GPU work, by the names of kernels: the first that fits.
KINDS = {
    "attention": r"flash|fmha|attention|sdpa",
    "optimiser": r"adam",
    "average": r"lerp|multi_tensor_apply.*(BinaryOp|Copy)",
    "normalisation and what is fused with it": r"group_?norm|RowwiseMoments",
    "convolution and linear layers": r"conv|implicit|[dw]grad|fprop|xmma|gemm|nvjet|cutlass|cudnn",
    "data and noise": r"bitwise|shift|index_?select|memcpy",
    "other": r"",
}


def job_of(words: tuple[str, ...], batch: int, folder: str, *more: str) -> Job:
    """The job of a configuration in `words`, with `batch` images a step and no warm-up."""
    config = resolve_image_set(load_step([*words, "train.warmup_images=0", *more], ())[0])
    config = one_pass(config, batch)
    workload = made_up(config, sizes.num_classes(config))
    return Job(config, workload, Path(folder), Path(folder) / "checkpoints")


def loss_of(trainer: AnyTrainer) -> float:
    """Loss of the next step of either trainer, which is taken."""
    trainer.train_step()
    if isinstance(trainer, PlainTrainer):
        return trainer.loss
    loss = float(trainer.loss_sum)
    trainer.loss_sum.zero_()
    return loss


def losses_differ(
    trainers: Mapping[str, AnyTrainer], steps: int, tolerance: float = TOLERANCE
) -> float:
    """Largest relative difference of a loss from the first trainer's, over the first `steps`.

    Raises RuntimeError if it is above `tolerance`: then they do not do the same work.
    """
    most = 0.0
    for _ in range(steps):
        first, *later_losses = [loss_of(trainer) for trainer in trainers.values()]
        most = max(most, *(abs(later - first) / first for later in later_losses))
    if not most <= tolerance:
        raise RuntimeError(f"losses of {', '.join(trainers)} differ by {most:.2g}")
    return most


def rate(trainer: AnyTrainer, steps: int) -> float:
    """Images/s over `steps` steps, after one that is not timed."""
    # One step unseen
    device = trainer.group.device
    if device.type == "cuda":
        torch.cuda.empty_cache()
    trainer.train_step()
    finish(device)
    # Then the timed ones
    began = time.monotonic()
    for _ in range(steps):
        trainer.train_step()
    finish(device)
    return steps * trainer.config.train.batch / (time.monotonic() - began)


# --- loop overhead -------------------------------------------------------------------------------


class Stopwatch:
    """Sums up the seconds between start and stop; both take any arguments, as hooks must."""

    def __init__(self) -> None:
        self.seconds = self.began = 0.0

    def start(self, *_: object) -> None:
        """Begin an interval."""
        self.began = time.monotonic()

    def stop(self, *_: object) -> None:
        """End it."""
        self.seconds += time.monotonic() - self.began


@contextmanager
def watched(trainer: Trainer) -> Iterator[Stopwatch]:
    """A stopwatch that runs in forward, backward and optimiser of a trainer on the CPU."""
    watch, backward = Stopwatch(), Tensor.backward

    def timed_backward(loss: Tensor) -> None:
        watch.start()
        backward(loss)
        watch.stop()

    # Around each part
    hooks = [
        trainer.model.register_forward_pre_hook(watch.start),
        trainer.model.register_forward_hook(watch.stop),
        trainer.optimizer.register_step_pre_hook(watch.start),
        trainer.optimizer.register_step_post_hook(watch.stop),
    ]
    # Backward has no hook
    Tensor.backward = timed_backward  # type: ignore[assignment]
    try:
        yield watch
    finally:
        Tensor.backward = backward  # type: ignore[method-assign]
        for hook in hooks:
            hook.remove()


def overhead(trainer: Trainer, steps: int) -> float:
    """Share of `steps` steps' wall time outside forward, backward and optimiser, on the CPU."""
    with watched(trainer) as watch:
        began = time.monotonic()
        for _ in range(steps):
            trainer.train_step()
        return 1 - watch.seconds / (time.monotonic() - began)


# --- where the time of a GPU goes ----------------------------------------------------------------


def kind_of(kernel: str) -> str:
    """Which of KINDS a kernel belongs to."""
    return next(kind for kind, pattern in KINDS.items() if re.search(pattern, kernel, re.I))


def profiled(trainer: Trainer, steps: int = 5) -> dict[str, float]:
    """Milliseconds of GPU time a step in each of KINDS."""
    # GPU time by kernel
    with profile(activities=[ProfilerActivity.CUDA]) as measured:
        for _ in range(steps):
            trainer.train_step()
        finish(trainer.group.device)
    # Summed by kind
    times: Counter[str] = Counter()
    for event in measured.key_averages():
        times[kind_of(event.key)] += event.self_device_time_total / 1000 / steps
    return dict(times.most_common())


def profile_lines(times: Mapping[str, float]) -> list[str]:
    """`profiled` as a table."""
    total = sum(times.values()) or 1.0
    return [f"{ms:9.1f} ms  {ms / total:6.1%}  {kind}" for kind, ms in times.items()]


# --- the two machines ----------------------------------------------------------------------------


def on_cpu(
    batch: int, rounds: int, steps: int, words: tuple[str, ...] = CPU_WORDS
) -> dict[str, Any]:
    """The result (see pipeline.bench.record) without a GPU."""
    # Three trainers alike
    group = Ranks(0, 1, torch.device("cpu"))
    with tempfile.TemporaryDirectory() as folder:
        exact = partial(job_of, words, batch, folder, "train.precision=fp32")
        trainers: dict[str, Any] = {
            "plain, float32": PlainTrainer(exact(), group),
            "ours, float32": Trainer(exact(), group),
            "ours, bf16": Trainer(job_of(words, batch, folder, "train.precision=bf16"), group),
        }
        # The same losses first
        differ = losses_differ(trainers, steps=8)
        cases = {name: partial(rate, trainer, steps) for name, trainer in trainers.items()}
        values = record.interleaved(cases, rounds)
        spent = sorted(overhead(trainers["ours, float32"], steps) for _ in range(rounds))
    # Against the plain one
    title = f"training steps of {batch} images, network of small, one process on the CPU"
    result = record.summary(title, "images/s", values, "plain, float32")
    # Promises on a CPU
    bars = [
        record.bar("ours, bf16 / plain", result["ratio"]["ours, bf16"], at_least=1.3),
        record.bar("loop overhead, float32", spent[len(spent) // 2], at_most=0.03),
        record.bar("relative difference of losses", differ, at_most=TOLERANCE),
    ]
    unmeasured = "on a GPU (2.5 x plain, 40 % MFU): unmeasured, for there is none here"
    return result | {"batch": batch, "threads": torch.get_num_threads(), "bars": bars} | {
        "notes": [unmeasured]
    }  # fmt: skip


def largest_batch(group: Ranks, folder: str, largest: int = LARGEST) -> int:
    """The largest halving of `largest` images of which the plain trainer can take two steps."""
    # Half as many each time
    batch = largest
    while batch > 1:
        try:
            trainer = PlainTrainer(job_of(GPU_WORDS, batch, folder), group)
            trainer.train_step()
            trainer.train_step()
            return batch
        except torch.OutOfMemoryError:
            batch //= 2
        finally:
            trainer = None  # type: ignore[assignment]
            gc.collect()
            torch.cuda.empty_cache()
    return batch


def gpu_losses_differ(group: Ranks, folder: str) -> float:
    """`losses_differ` of both trainers in float32, compiled or not as for the timing."""
    job = partial(job_of, GPU_WORDS, 8, folder, "train.precision=fp32", "model.dropout=0.0")
    trainers: dict[str, AnyTrainer]
    trainers = {"plain": PlainTrainer(job(), group), "ours": Trainer(job(), group)}
    return losses_differ(trainers, steps=4)


def on_gpu(rounds: int, steps: int) -> dict[str, Any]:
    """The result (see pipeline.bench.record) on one GPU."""
    # The same losses first
    group = Ranks(0, 1, torch.device("cuda", 0))
    with tempfile.TemporaryDirectory() as folder:
        differ = gpu_losses_differ(group, folder)
        gc.collect()
        # two trainers stand side by side: half of what fits one leaves room for the other's state
        batch = largest_batch(group, folder) // 2
        # Two trainers in turn
        job = partial(job_of, GPU_WORDS, batch, folder)
        trainers: dict[str, Any] = {"plain, fp16": PlainTrainer(job(), group)}
        trainers["ours, bf16"] = ours = Trainer(job(), group)
        cases = {name: partial(rate, trainer, steps) for name, trainer in trainers.items()}
        values = record.interleaved(cases, rounds)
        times = profiled(ours)
    # Against the plain one
    title = f"training steps of {batch} images of 64 px, network of imagenet, one GPU"
    result = record.summary(title, "images/s", values, "plain, fp16")
    name, reached = ours.meter.name, result["median"]["ours, bf16"]
    use = flops.mfu(reached, ours.meter.flops, name)
    # Promises on a GPU
    bars = [
        record.bar("ours / plain", result["ratio"]["ours, bf16"], at_least=2.5),
        record.bar("relative difference of losses, float32", differ, at_most=TOLERANCE),
        *([record.bar("MFU", use, at_least=0.4)] if use is not None else []),
    ]
    notes = ["GPU time of our step:", *profile_lines(times)]
    return result | {"batch": batch, "profile_ms": times, "mfu": use, "bars": bars, "notes": notes}


def run(rounds: int = 7, steps: int = 3, batch: int = 64) -> dict[str, Any]:
    """The result (see pipeline.bench.record) on the GPU if there is one, else on the CPU."""
    cuda = torch.cuda.is_available()
    with one_rank(torch.device("cuda", 0) if cuda else torch.device("cpu")):
        return on_gpu(rounds, steps) if cuda else on_cpu(batch, rounds, steps)
