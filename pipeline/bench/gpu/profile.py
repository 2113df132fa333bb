"""Where the time of a training step goes on the device: kernels, gaps between them, bytes.

Read from the trace that torch's profiler exports. A kernel's bytes are those of the arguments of
the operation that launched it (each read or written once at least), shared out over the kernels
of that operation by their time. For what moves memory and hardly computes, the rate says how near
it is to the card's bandwidth; for convolutions it says little.
"""

import json
import math
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from pipeline.bench import record
from pipeline.bench.gpu.scale import Scale
from pipeline.bench.gpu.training import Bench
from pipeline.bench.plain import one_rank
from pipeline.bench.train import kind_of, profile_lines
from pipeline.training.calibration import finish
from pipeline.training.trainer import Trainer, share

Event = dict[str, Any]  # of a trace: name, cat, ts and dur in microseconds, args

TOP = 15  # kernels of the table
STEPS = 3  # in the trace
DEVICE_WORK = ("kernel", "gpu_memcpy", "gpu_memset")  # categories of events on a GPU
BYTES = {
    "double": 8, "long int": 8, "long": 8, "float": 4, "int": 4, "c10::BFloat16": 2,
    "c10::Half": 2, "short": 2, "unsigned char": 1, "signed char": 1, "bool": 1,
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """All launches of a kernel in a step."""

    # What it is
    name: str
    kind: str  # see bench/train.py
    # What it takes
    ms: float
    share: float  # of the time of all kernels
    launches: float
    gb_per_s: float | None  # None: the arguments of what launched it are not known


def trace_of(step: Callable[[], None], device: torch.device) -> list[Event]:
    """The events of STEPS calls of `step`, after one unseen."""
    # One call unseen
    step()
    finish(device)
    # The calls in the trace
    activities = [ProfilerActivity.CPU]
    activities += [ProfilerActivity.CUDA] if device.type == "cuda" else []
    with profile(activities=activities, record_shapes=True) as measured:
        for _ in range(STEPS):
            step()
        finish(device)
    # As torch exports it
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        measured.export_chrome_trace(str(path))
        events: list[Event] = json.loads(path.read_text())["traceEvents"]
    return events


def work(events: Iterable[Event], categories: tuple[str, ...] = DEVICE_WORK) -> list[Event]:
    """The events of the device, in order of time."""
    chosen = (event for event in events if event.get("cat") in categories and "dur" in event)
    return sorted(chosen, key=lambda event: float(event["ts"]))


def idle_us(kernels: list[Event]) -> tuple[float, float]:
    """Microseconds without a kernel between the first and the last of `kernels`, and in all.

    Kernels are in order of time and may overlap.
    """
    if not kernels:
        return 0.0, 0.0
    start = end = float(kernels[0]["ts"])
    idle = 0.0
    for event in kernels:
        began = float(event["ts"])
        idle += max(0.0, began - end)
        end = max(end, began + float(event["dur"]))
    return idle, end - start


def argument_bytes(operation: Event) -> int | None:
    """Bytes of the tensors that an operation was called with; None: the trace names no sizes."""
    args = operation.get("args", {})
    sizes, types = args.get("Input Dims"), args.get("Input type")
    if not sizes or not types:
        return None
    total = 0
    for size, kind in zip(sizes, types, strict=False):
        flat = bool(size) and all(isinstance(length, int) for length in size)
        total += math.prod(size) * BYTES.get(kind, 0) if flat else 0
    return total or None


def bytes_of(events: Iterable[Event], kernels: list[Event]) -> list[float | None]:
    """The bytes of each kernel: of the operation with its External id, shared out by time."""
    # Operations by their number
    sizes = {number_of(e): argument_bytes(e) for e in events if e.get("cat") == "cpu_op"}
    # Time of all kernels of one
    times: dict[Any, float] = defaultdict(float)
    for kernel in kernels:
        times[number_of(kernel)] += float(kernel["dur"])
    # Each kernel's part
    parts: list[float | None] = []
    for kernel in kernels:
        size, total = sizes.get(number_of(kernel)), times[number_of(kernel)]
        known = size is not None and total > 0 and number_of(kernel) is not None
        parts.append(size * float(kernel["dur"]) / total if known and size else None)
    return parts


def number_of(event: Event) -> Any:
    """The number that an operation and the kernels it launched have in common."""
    return event.get("args", {}).get("External id")


def table(events: list[Event], categories: tuple[str, ...] = DEVICE_WORK) -> list[Row]:
    """The kernels of a step by name, those that take longest first."""
    # All launches by name
    kernels = work(events, categories)
    launches: dict[str, list[tuple[float, float | None]]] = defaultdict(list)
    for kernel, size in zip(kernels, bytes_of(events, kernels), strict=True):
        launches[kernel["name"]].append((float(kernel["dur"]), size))
    # Rows of a step
    total_us = sum(float(kernel["dur"]) for kernel in kernels) or 1.0
    rows = [row_of(name, each, total_us) for name, each in launches.items()]
    return sorted(rows, key=lambda row: -row.ms)


def row_of(name: str, launches: list[tuple[float, float | None]], total_us: float) -> Row:
    """The row of a kernel by the microseconds and bytes of its launches."""
    spent_us = sum(us for us, _ in launches)
    known = [(us, size) for us, size in launches if size is not None]
    known_us = sum(us for us, _ in known)
    return Row(
        name=name,
        kind=kind_of(name),
        ms=spent_us / 1e3 / STEPS,
        share=spent_us / total_us,
        launches=len(launches) / STEPS,
        gb_per_s=sum(size for _, size in known) / known_us / 1e3 if known_us else None,
    )


def lines(rows: list[Row]) -> list[str]:
    """The table for people."""
    heading = f"{'ms':>8} {'share':>6} {'launches':>8} {'GB/s':>7}  kernel"
    return [
        heading,
        *(
            f"{row.ms:8.2f} {row.share:6.1%} {row.launches:8.1f} "
            f"{'?' if row.gb_per_s is None else format(row.gb_per_s, ',.0f'):>7}  {row.name[:90]}"
            for row in rows[:TOP]
        ),
    ]


def outside_ms(trainer: Trainer, repeats: int = 5) -> float:
    """Milliseconds of a step for what is neither the network nor the optimiser: data, noise,
    the gradient's length, the averages.
    """
    # The parts of one step
    device, train = trainer.group.device, trainer.config.train
    for parameter in trainer.net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    positions = share(trainer.images, 0, 0, 1, trainer.micro)

    def once() -> None:
        trainer.workload.batch(positions)
        trainer._clip()
        for average in trainer.averages:
            average.update(trainer.parameters, trainer.images, train.batch)

    # Timed together
    once()
    finish(device)
    began = time.monotonic()
    for _ in range(repeats):
        once()
    finish(device)
    return (time.monotonic() - began) / repeats * 1e3


def step_ms(trainer: Trainer, repeats: int) -> list[float]:
    """Milliseconds of each of `repeats` steps, after one unseen."""
    trainer.train_step()
    times = []
    for _ in range(repeats):
        finish(trainer.group.device)
        began = time.monotonic()
        trainer.train_step()
        finish(trainer.group.device)
        times.append((time.monotonic() - began) * 1e3)
    return times


def of_a_step(scale: Scale) -> dict[str, Any]:
    """One step of our trainer with the most images a pass that an eager one has memory for."""
    with one_rank(scale.device), tempfile.TemporaryDirectory() as folder:
        bench = Bench(scale, folder)
        most = bench.memory().largest(int(0.9 * bench.free()))
        batch = next(size for size in scale.halvings() if size <= max(1, most))
        trainer = bench.ours(batch)
        # By the clock first: a profiler slows a step down
        times = step_ms(trainer, scale.rounds)
        outside = [outside_ms(trainer) for _ in range(scale.rounds)]
        events = trace_of(trainer.train_step, scale.device)
    # The result
    title = f"profile of a training step of {batch} images: {' '.join(scale.words)}"
    outcome = record.summary(
        title, "ms", {"step": times, "data, clipping and averages": outside}, "step"
    )
    return outcome | {"batch": batch} | described(events, outcome["ratio"])


def described(events: list[Event], ratio: dict[str, float]) -> dict[str, Any]:
    """Table, kinds, gaps and bars of a trace."""
    # Sums over the trace
    rows, (idle, span) = table(events), idle_us(work(events))
    kinds: dict[str, float] = defaultdict(float)
    for row in rows:
        kinds[row.kind] += row.ms
    gaps = idle / span if span else None
    # For people
    by_kind = dict(sorted(kinds.items(), key=lambda item: -item[1]))
    notes = [*lines(rows), *profile_lines(by_kind)]
    if gaps is None:
        notes = ["no kernel of a GPU is in the trace"]
    outside = ratio["data, clipping and averages"]
    bars = [record.bar("time outside of network and optimiser", outside, at_most=0.05)]
    if gaps is not None:
        bars.append(record.bar("time without a kernel", gaps, at_most=0.05))
    return {
        "kernels": [asdict(row) for row in rows[:TOP]],
        "kinds_ms": by_kind,
        "gap_share": gaps,
        "launches": sum(row.launches for row in rows),
        "bars": bars,
        "notes": notes,
    }
