"""Training steps on a device, against the plain trainer of pipeline/bench/plain.py on the CPU.

The plain trainer has its own attention, optimiser and averages, and no dropout, micro-batches,
compilation or fp16 scaler.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.bench.gpu_check.check import (
    NOT_COMPILED,
    Check,
    Figure,
    NotApplicable,
    needs_compiler,
    needs_precision,
)
from pipeline.bench.gpu_check.inputs import BATCH, made_up_job
from pipeline.bench.gpu_check.networks import relative
from pipeline.bench.plain import PlainTrainer, one_rank
from pipeline.compute.distributed import Ranks
from pipeline.training import checkpoint, loop
from pipeline.training.trainer import Trainer

STEPS = 60
CPU = torch.device("cpu")
# For fp16, of which a CPU has slow convolutions
SMALL = (
    "model.channel_mult=[1]",
    "model.attention_at=[]",
    "train.batch=12",
    "runtime.micro_batch=12",
)
NO_DROPOUT, DROPOUT = "model.dropout=0", "model.dropout=0.2"


class OneRank(Trainer):
    """A trainer whose only rank exchanges its gradients with itself, as several ranks do."""

    def _parallel(self) -> nn.Module:
        model = super()._parallel()
        return DistributedDataParallel(model, static_graph=True, gradient_as_bucket_view=True)


def trainer(
    device: torch.device, folder: str, *words: str, kind: type[Trainer] = Trainer
) -> Trainer:
    """A trainer of the tiny network on made-up images, before its first step."""
    return kind(made_up_job(folder, *words), Ranks(0, 1, device))


def losses(subject: Trainer | PlainTrainer, steps: int) -> np.ndarray:
    """Losses (steps,) of the next steps, which are taken."""
    values = []
    for _ in range(steps):
        subject.train_step()
        if isinstance(subject, PlainTrainer):
            values.append(subject.loss)
        else:
            values.append(float(subject.loss_sum))
            subject.loss_sum.zero_()
    return np.array(values)


@cache
def plain_losses() -> np.ndarray:
    """The losses of the plain trainer on the CPU, in float32."""
    with one_rank(CPU):
        return losses(PlainTrainer(made_up_job("", NO_DROPOUT), Ranks(0, 1, CPU)), STEPS)


def difference(ours: np.ndarray, right: np.ndarray) -> float:
    """Largest relative difference of a loss."""
    return float(np.abs(ours / right - 1).max())


def steps(
    precision: str, compiled: bool, at_most: float, device: torch.device, num: int = STEPS
) -> Figure:
    """Losses of `num` steps by one rank that exchanges gradients."""
    if compiled:
        needs_compiler(device)
    needs_precision(precision, device)
    words = (NO_DROPOUT, f"train.precision={precision}", f"runtime.compile={str(compiled).lower()}")
    right = plain_losses()[:num]
    with TemporaryDirectory() as folder, one_rank(device):
        ours = losses(trainer(device, folder, *words, kind=OneRank), num)
    return Figure(difference(ours, right), at_most, "relative", note=f"last loss {ours[-1]:.6f}")


def on_cpu_too(device: torch.device) -> Figure:
    """Losses with dropout, whose masks follow the image, on the device and on the CPU."""
    with TemporaryDirectory() as folder:
        ours, right = (losses(trainer(d, folder, DROPOUT), 20) for d in (device, CPU))
    return Figure(difference(ours, right), 1e-4, "relative")


def accumulated(device: torch.device) -> Figure:
    """Losses of 20 steps in one pass and in three."""
    with TemporaryDirectory() as folder:
        micro = [f"runtime.micro_batch={BATCH // passes}" for passes in (1, 3)]
        right, ours = (losses(trainer(device, folder, DROPOUT, word), 20) for word in micro)
    return Figure(difference(ours, right), 1e-4, "relative")


# --- states --------------------------------------------------------------------------------------


def tensors(value: Any) -> Iterator[Tensor]:
    """All tensors of a state, in order."""
    if isinstance(value, Tensor):
        yield value.detach().cpu()
    elif isinstance(value, dict):
        for key in sorted(value, key=str):
            yield from tensors(value[key])
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors(item)


def different(first: Any, second: Any) -> int:
    """How many values of two states differ."""
    pairs = zip(tensors(first), tensors(second), strict=True)
    return sum(int((a != b).sum()) for a, b in pairs)


def weights(subject: Trainer) -> Tensor:
    """Weights and their averages, float64 in one row.

    Tensor by tensor, or with moments and remainders, rounding alone would differ by more than the
    whole: a bias that the next norm takes away has no other gradient.
    """
    state = subject.state()
    return torch.cat(
        [value.double().flatten() for value in tensors([state["net"], state["averages"]])]
    )


@contextmanager
def kernels(deterministic: bool) -> Iterator[None]:
    """Kernels that always add in the same order, if asked for.

    Raises NotApplicable if torch has none for some operation.
    """
    torch.use_deterministic_algorithms(deterministic)
    try:
        yield
    except RuntimeError as error:
        if "deterministic implementation" in str(error):
            raise NotApplicable(str(error).partition(",")[0]) from error
        raise
    finally:
        torch.use_deterministic_algorithms(False)


def saved(subject: Trainer) -> dict[str, Any]:
    """The state of a trainer from the file that it writes."""
    subject.save()
    subject.writer.wait()
    state = checkpoint.load_newest(subject.job.scratch)
    assert state is not None
    return state


def resumed(deterministic: bool, device: torch.device) -> Figure:
    """A run of 20 steps, and one that another trainer takes over from a checkpoint at step 10."""
    with kernels(deterministic), TemporaryDirectory() as whole, TemporaryDirectory() as parts:
        uncut = trainer(device, whole, DROPOUT)
        losses(uncut, 20)
        first = trainer(device, parts, DROPOUT)
        losses(first, 10)
        second = trainer(device, parts, DROPOUT)
        loop.resume(second, saved(first))
        losses(second, 10)
        count = different(second.state(), uncut.state())
        size = relative(weights(second), weights(uncut))
    if deterministic:
        return Figure(count, 0, "values")
    return Figure(size, 1e-4, "relative", note=f"{count} values differ")


def scaler_skips(device: torch.device) -> Figure:
    """A step in fp16 that overflows changes no weight and halves the scale; later ones go on."""
    with TemporaryDirectory() as folder:
        subject = trainer(device, folder, "train.precision=fp16", *SMALL)
        subject.scaler = torch.amp.GradScaler(device.type, init_scale=2.0**32)
        before = [value.clone() for value in tensors(subject.net.state_dict())]
        subject.train_step()
        changed = different(subject.net.state_dict(), before)
        scale = subject.scaler.get_scale()
        losses(subject, 20)
        moved = different(subject.net.state_dict(), before)
    if scale != 2.0**31:
        raise ValueError(f"the scale is {scale:g} after a step that overflowed, not 2^31")
    if not moved:
        raise ValueError("no later step changed a weight")
    return Figure(changed, 0, "values")


def crossing(device: torch.device) -> Figure:
    """A checkpoint goes from the CPU to the device and back, with a step on each."""
    with TemporaryDirectory() as folder:
        start, there, back = (trainer(d, folder, DROPOUT) for d in (CPU, device, CPU))
        losses(start, 3)
        state = saved(start)
        there.load_state(state)
        changed = different(there.state(), state)
        gap = difference(losses(there, 3), losses(start, 3))
        state = saved(there)
        back.load_state(state)
        changed += different(back.state(), state) + different(there.state(), state)
    if gap > 1e-4:
        raise ValueError(f"the losses after the checkpoint differ by {gap:.2g}, more than 1e-4")
    return Figure(changed, 0, "values", note=f"losses after it differ by {gap:.2g}")


CARRIED = "rounding of 1e-6 a step, which Adam carries on"
CHECKS = (
    Check("60 steps, eager", partial(steps, "fp32", False, 1e-4), CARRIED),
    Check("60 steps, compiled", partial(steps, "fp32", True, 1e-4), CARRIED, NOT_COMPILED),
    *(
        Check(
            f"20 steps, {precision}",
            partial(steps, precision, False, 2e-2, num=20),
            "its products round",
        )
        for precision in ("bf16", "fp16")
    ),
    Check("20 steps with dropout", on_cpu_too, CARRIED),
    Check("one pass and three", accumulated, CARRIED),
    Check("killed and resumed, deterministic", partial(resumed, True), "the same sums"),
    Check("killed and resumed", partial(resumed, False), CARRIED),
    Check("a step that fp16's scaler skips", scaler_skips, "it changes nothing"),
    Check("checkpoint from CPU to device and back", crossing, "the same bits"),
)
