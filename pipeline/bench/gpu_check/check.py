"""A check: what it measures on a device, the bounds of that figure, and what came of it."""

import gc
import math
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from pipeline.compute import execution

# Packages without which a check is not applicable; any other that is missing is a failure.
OPTIONAL = {
    "efficientnet_lite_pytorch", "psutil", "pynvml", "scipy", "submitit", "tensorboard",
    "torch_fidelity", "torchvision",
}  # fmt: skip
NOT_COMPILED = "runtime.compile=auto compiles nothing for a CPU"
OK, FAILED, NOT_APPLICABLE = "ok", "FAILED", "n/a"  # states of an outcome


class NotApplicable(Exception):
    """The check means nothing here; the message says why."""


class Figure(NamedTuple):
    """A measured figure and its bounds, which it may reach; NaN is outside of any."""

    # The figure
    value: float
    at_most: float
    unit: str
    # Beside it
    at_least: float = -math.inf
    note: str = ""

    @property
    def holds(self) -> bool:
        """Whether the figure is within its bounds."""
        return self.at_least <= self.value <= self.at_most


@dataclass(frozen=True)
class Check:
    """One row of the table. `measure` raises NotApplicable, or any error if it fails otherwise."""

    # Its name and work
    name: str
    measure: Callable[[torch.device], Figure]
    why: str  # the bound is what it is
    not_on_cpu: str = ""  # why it means nothing on a CPU; empty: it does


@dataclass(frozen=True)
class Outcome:
    """The result of a check."""

    # The check
    name: str
    state: str
    text: str  # what failed, why it is not applicable, or a note
    # The figure
    value: float | None = None
    at_least: float | None = None
    at_most: float | None = None
    unit: str = ""
    why: str = ""
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Its fields; a figure that is not finite as text, which JSON can hold."""
        fields = dict(vars(self))
        if self.value is not None and not math.isfinite(self.value):
            fields["value"] = str(self.value)
        return fields

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "Outcome":
        """The inverse of `to_json`."""
        value = fields["value"]
        return cls(**{**fields, "value": None if value is None else float(value)})


def run_check(check: Check, device: torch.device) -> Outcome:
    """Run a check; whatever it raises becomes a line of the outcome."""
    if device.type == "cpu" and check.not_on_cpu:
        return Outcome(check.name, NOT_APPLICABLE, check.not_on_cpu, why=check.why)
    settle(device)
    began = time.monotonic()
    state, text, figure = measured(check, device)
    settle(device)
    seconds = round(time.monotonic() - began, 2)
    if figure is None:
        return Outcome(check.name, state, text, why=check.why, seconds=seconds)
    at_least = None if figure.at_least == -math.inf else figure.at_least
    bounds = (float(figure.value), at_least, figure.at_most, figure.unit)
    return Outcome(check.name, state, text, *bounds, check.why, seconds)


def measured(check: Check, device: torch.device) -> tuple[str, str, Figure | None]:
    """State and text of an outcome, and the figure if there is one."""
    try:
        figure = check.measure(device)
    except NotApplicable as reason:
        return NOT_APPLICABLE, str(reason), None
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        if package in OPTIONAL:
            return NOT_APPLICABLE, f"the package {package} is not installed", None
        return FAILED, one_line(error), None
    except Exception as error:
        traceback.print_exc()
        return FAILED, one_line(error), None
    if figure.holds:
        return OK, figure.note, figure
    return FAILED, outside(figure), figure


def needs_compiler(device: torch.device) -> None:
    """Raise NotApplicable if nothing can be compiled for the device."""
    if execution.compiler(device) is None:
        raise NotApplicable(f"there is no compiler for {device.type}")


def needs_precision(precision: str, device: torch.device) -> None:
    """Raise NotApplicable if the device does not have it."""
    if device.type == "cuda" and precision in ("tf32", "bf16"):
        major, minor = torch.cuda.get_device_capability(device)
        if major < 8:
            raise NotApplicable(f"compute capability {major}.{minor} has no {precision}")


def outside(figure: Figure) -> str:
    """In which direction a figure is outside of its bounds."""
    too_low = figure.value < figure.at_least
    bound = f"below {figure.at_least:g}" if too_low else f"not within {figure.at_most:g}"
    return (
        f"{figure.value:.3g} {figure.unit} is {bound}{f' ({figure.note})' if figure.note else ''}"
    )


def one_line(error: BaseException) -> str:
    """An error as one line: its kind and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def settle(device: torch.device) -> None:
    """Undo what a check has set, and free what it has left, so that the next one starts anew."""
    torch.use_deterministic_algorithms(False)
    if "torch._dynamo" in sys.modules:  # slow to import
        torch.compiler.reset()
    if device.type == "cuda":
        execution.set_float32("fp32", device)
        gc.collect()  # its tensors
        torch.cuda.empty_cache()
