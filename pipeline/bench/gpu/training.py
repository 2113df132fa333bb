"""Training: images/s and MFU of our trainer, and of the plain one, by what is asked of them.

Every trainer takes steps of one pass, as in `bench train`, and is measured alone, since the largest
passes leave no room for a second one. The plain trainer runs in the same process, at its own best
number of images a pass.
"""

import gc
import tempfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from pipeline.bench import record
from pipeline.bench.gpu.normalisation import by_channels
from pipeline.bench.gpu.scale import OutOfTime, Scale
from pipeline.bench.plain import PlainTrainer, one_rank
from pipeline.bench.train import AnyTrainer, job_of, rate
from pipeline.compute import execution
from pipeline.compute.distributed import Ranks
from pipeline.training import flops
from pipeline.training.job import Job
from pipeline.training.memory import StepMemory, step_memory
from pipeline.training.meter import peak_memory
from pipeline.training.trainer import Trainer

Make = Callable[[int], AnyTrainer]  # a trainer whose steps are of so many images

PLAIN, OURS = "plain, fp16", "ours, bf16"
EAGER_SHARE = 1.5  # a compiled pass keeps less than the memory model says of an eager one


@dataclass(frozen=True)
class Case:
    """A trainer at one number of images a pass."""

    # What it did
    batch: int
    rates: list[float]  # images/s of each round
    # What it used
    mfu: float | None  # None: the peak of the device is not known
    peak_gb: float
    model_gb: float  # by the memory model, for an eager pass

    @property
    def images_per_s(self) -> float:
        """The median of the rounds."""
        return median(self.rates)


class Bench:
    """Makes trainers of one experiment, and measures them."""

    def __init__(self, scale: Scale, folder: str) -> None:
        self.scale, self.folder = scale, folder
        self.group = Ranks(0, 1, scale.device)
        self.memories: dict[tuple[str, ...], StepMemory] = {}  # each takes seconds to count
        self.flops = flops.training_flops(self.job(1).workload)
        self.name = "CPU"
        if scale.device.type == "cuda":
            self.name = torch.cuda.get_device_name(scale.device)

    def job(self, batch: int, *words: str) -> Job:
        """The training of the experiment with `batch` images a step, in one pass."""
        return job_of(self.scale.words, batch, self.folder, *words)

    def plain(self, batch: int) -> PlainTrainer:
        """The plain trainer."""
        return PlainTrainer(self.job(batch), self.group)

    def ours(self, batch: int, *words: str) -> Trainer:
        """Our trainer, with further words."""
        return Trainer(self.job(batch, *words), self.group)

    def memory(self, *words: str) -> StepMemory:
        """The memory of a step of our trainer."""
        if words not in self.memories:
            job = self.job(1, *words)
            self.memories[words] = step_memory(job.config, job.workload, self.scale.device)
        return self.memories[words]

    def sizes(self, *words: str) -> list[int]:
        """Numbers of images a pass that may fit, the largest first."""
        limit = int(EAGER_SHARE * self.free())
        most = max(1, self.memory(*words).largest(limit))
        return [size for size in self.scale.halvings() if size <= most]

    def free(self) -> int:
        """Bytes that are free on the device."""
        return execution.free_memory(self.scale.device)

    def measured(self, make: Make, batch: int, memory: StepMemory) -> Case | None:
        """Rates of a trainer made for this; None if its memory is not enough."""
        trainer: AnyTrainer | None = None
        self._forget()
        try:
            trainer = make(batch)
            rates = [rate(trainer, self.scale.steps) for _ in range(self.scale.rounds)]
            use = flops.mfu(median(rates), self.flops, self.name)
            peak = peak_memory(self.scale.device)
            case = Case(batch, rates, use, peak / 1e9, memory.peak(batch) / 1e9)
            # At once: a part that is stopped writes no record
            print(case_line(type(trainer).__name__, case), flush=True)
            return case
        except RuntimeError as error:
            if not execution.is_out_of_memory(error):
                raise
            return None
        finally:
            trainer = None
            self._forget()

    def _forget(self) -> None:
        """Free what the last trainer held."""
        gc.collect()
        torch._dynamo.reset()
        if self.scale.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.scale.device)

    def best(self, make: Make, sizes: list[int], memory: StepMemory) -> Case:
        """The fastest of the two largest of `sizes` (descending) that fit.

        Raises RuntimeError if none does.
        """
        fitting: list[Case] = []
        for size in sizes:
            try:
                with self.scale.limited():
                    case = self.measured(make, size, memory)
            except OutOfTime:
                if not fitting:
                    raise
                break
            if case is not None:
                fitting.append(case)
            if len(fitting) == 2 or (fitting and not self.scale.in_time()):
                break
        if not fitting:
            raise RuntimeError("not even a batch of one fits on the device")
        return max(fitting, key=lambda case: case.images_per_s)

    def baseline(self) -> Case:
        """The plain trainer at its best."""
        return self.best(self.plain, self.scale.halvings(), self.memory())


def result(title: str, cases: Mapping[str, Case | None], more: list[str]) -> dict[str, Any]:
    """The result (see pipeline.bench.record) of the cases that fit; the others become notes."""
    # Those that fit
    fitting = {name: case for name, case in cases.items() if case is not None}
    rates = {name: case.rates for name, case in fitting.items()}
    # Beside the rates
    absent = [f"{name}: does not fit" for name, case in cases.items() if case is None]
    return record.summary(title, "images/s", rates, PLAIN) | {
        "cases": {name: asdict(case) for name, case in fitting.items()},
        "notes": [*map(case_line, fitting, fitting.values()), *absent, *more],
    }


def case_line(name: str, case: Case) -> str:
    """The resources that a case used, as a line."""
    use = "unknown MFU" if case.mfu is None else f"MFU {case.mfu:.1%}"
    memory = f"{case.peak_gb:.1f} GB (model, eager: {case.model_gb:.1f} GB)"
    return f"{name}: {case.batch} images a pass, {case.images_per_s:,.1f} images/s, {use}, {memory}"


def title(scale: Scale, what: str) -> str:
    """The title of a part."""
    return f"training, {what}: {' '.join(scale.words)}, steps of one pass, one {scale.device.type}"


# --- the parts -----------------------------------------------------------------------------------


def at_best(scale: Scale) -> dict[str, Any]:
    """Both trainers, each at its best number of images a pass, and ours with the whole batch."""
    with one_rank(scale.device), tempfile.TemporaryDirectory() as folder:
        bench = Bench(scale, folder)
        memory = bench.memory()
        plain = bench.baseline()
        ours = bench.best(bench.ours, bench.sizes(), memory)
    # Against the plain one
    outcome = result(title(scale, "each at its best"), {PLAIN: plain, OURS: ours}, [])
    bars = [record.bar("ours / plain, each at its best", outcome["ratio"][OURS], at_least=3.5)]
    if ours.mfu is not None:
        bars.append(record.bar("MFU", ours.mfu, at_least=0.4))
    return outcome | {"bars": bars}


def by_micro_batch(scale: Scale) -> dict[str, Any]:
    """Ours with every number of images a pass that fits, the largest first."""
    cases: dict[str, Case | None] = {}
    notes: list[str] = []
    with one_rank(scale.device), tempfile.TemporaryDirectory() as folder:
        bench = Bench(scale, folder)
        memory = bench.memory()
        cases[PLAIN] = bench.baseline()
        for size in bench.sizes():
            name = f"{OURS}, {size} images"
            scale.measure(name, partial(bench.measured, bench.ours, size, memory), cases, notes)
    return result(title(scale, "by images a pass"), cases, notes)


@dataclass(frozen=True)
class Option:
    """Our trainer asked for by further words, with a part of it replaced."""

    name: str
    words: tuple[str, ...] = ()
    replaced: Callable[[], AbstractContextManager[Any]] = nullcontext


def plain_format() -> AbstractContextManager[Any]:
    """Channels in the second place, as on a CPU."""
    return patch.object(execution, "memory_format", lambda device: torch.contiguous_format)


def cuda_graphs() -> AbstractContextManager[Any]:
    """Compiled code is recorded once as a CUDA graph, and launched as one."""
    return patch.object(torch, "compile", partial(torch.compile, mode="reduce-overhead"))


def norm_by_channels() -> AbstractContextManager[Any]:
    """GroupNorm by sums over each channel."""
    return patch.object(nn.GroupNorm, "forward", by_channels)


PRECISIONS = tuple(
    Option(f"ours, {precision}", (f"train.precision={precision}",))
    for precision in ("bf16", "fp16", "tf32", "fp32")
)
WAYS = (
    Option(f"{OURS}, compiled", ("runtime.compile=true",)),
    Option(f"{OURS}, eager", ("runtime.compile=false",)),
    Option(f"{OURS}, compiled, CUDA graphs", ("runtime.compile=true",), cuda_graphs),
    Option(f"{OURS}, compiled, norm by channels", ("runtime.compile=true",), norm_by_channels),
    Option(f"{OURS}, compiled, channels first", ("runtime.compile=true",), plain_format),
)


def by_option(scale: Scale, what: str, options: tuple[Option, ...]) -> dict[str, Any]:
    """Ours by option, each with the most images a pass that fit it, beside the plain trainer."""
    cases: dict[str, Case | None] = {}
    notes: list[str] = []
    with one_rank(scale.device), tempfile.TemporaryDirectory() as folder:
        bench = Bench(scale, folder)
        cases[PLAIN] = bench.baseline()
        for option in options:
            scale.measure(option.name, partial(largest, bench, option), cases, notes)
    return result(title(scale, what), cases, notes)


def largest(bench: Bench, option: Option) -> Case | None:
    """The option with the most images a pass of which an eager one should fit, or half of them."""
    print(f"next: {option.name}", flush=True)
    # Sizes that fit without luck
    memory = bench.memory(*option.words)
    sizes = [n for n in bench.scale.halvings() if memory.peak(n) <= bench.free()] or [1]
    # The first that runs
    with option.replaced():
        attempts = (
            bench.measured(lambda size: bench.ours(size, *option.words), size, memory)
            for size in sizes[:2]
        )
        return next((case for case in attempts if case is not None), None)


def by_precision(scale: Scale) -> dict[str, Any]:
    """Ours in each precision."""
    return by_option(scale, "by precision", PRECISIONS)


def by_way(scale: Scale) -> dict[str, Any]:
    """Ours compiled or not, with CUDA graphs, with another GroupNorm, with the channels first."""
    return by_option(scale, "by compilation and memory format", WAYS)
