"""How a measurement is taken, summed up, printed and kept.

A result is a dict: what (one line), unit, baseline (a case), rounds, median and ratio of each
case, all its rounds, and whatever else the measurement says about itself.
"""

import platform
import subprocess
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import PIL
import torch

from pipeline.base.code import code_sha256
from pipeline.base.files import read_json, write_json
from pipeline.compute import gpus

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / "results" / "benchmarks"

Case = Callable[[], float]  # one round of a case: its seconds, or its rate


def hardware() -> dict[str, Any]:
    """Everything that a number depends on besides the code: processor, memory, GPU, driver,
    versions.
    """
    # From Linux
    cpu = [x.split(":")[1] for x in _lines("/proc/cpuinfo") if x.startswith("model name")]
    memory = next(x.split()[1] for x in _lines("/proc/meminfo") if x.startswith("MemTotal"))
    # Machine and libraries
    return {
        "cpu": cpu[0].strip() if cpu else platform.machine(),
        "cores": gpus.cpu_cores(),
        "memory_gb": round(int(memory) * 1024 / 1e9, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "driver": driver(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "pillow": PIL.__version__,
        "numpy": np.__version__,
    }


def driver() -> str | None:
    """Version of NVIDIA's driver; None if there is none, or nothing to ask it with."""
    with suppress(ImportError):
        import pynvml

        with suppress(pynvml.NVMLError):
            pynvml.nvmlInit()
            return str(pynvml.nvmlSystemGetDriverVersion())
    return None


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()


def commit(folder: Path = ROOT) -> str | None:
    """Short hash of the checked-out commit; with "+" if the files outside results/ differ.

    None if `folder` is not a git checkout.
    """
    head = _git(folder, "rev-parse", "--short", "HEAD")
    if head is None:
        return None
    return head + ("+" if _git(folder, "status", "--porcelain", "--", ".", ":!results") else "")


def _git(folder: Path, *words: str) -> str | None:
    """Output of a git command in `folder`; None if it fails or git is missing."""
    try:
        done = subprocess.run(["git", "-C", folder, *words], capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def interleaved(cases: Mapping[str, Case], rounds: int) -> dict[str, list[float]]:
    """`rounds` values of each case, taken in turn, so that a busy machine slows all alike."""
    values: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, case in cases.items():
            values[name].append(case())
    return values


def medians(values: dict[str, list[float]]) -> dict[str, float]:
    """Median of each case."""
    return {name: median(case) for name, case in values.items()}


def ratios(values: dict[str, list[float]], baseline: str) -> dict[str, float]:
    """Median of each case over the median of `baseline`."""
    middle = medians(values)
    return {name: value / middle[baseline] for name, value in middle.items()}


def summary(title: str, unit: str, values: dict[str, list[float]], baseline: str) -> dict[str, Any]:
    """The result that `values` (rounds of each case, in `unit`) amount to: see the module."""
    return {
        "what": title,
        "unit": unit,
        "baseline": baseline,
        "rounds": values,
        "median": medians(values),
        "ratio": ratios(values, baseline),
    }


def table(result: dict[str, Any]) -> str:
    """The result in a few lines: ratio, median and spread of each case."""
    # The heading
    lines = [result["what"], f"{'ratio':>9}  {'median':>11}  {'lowest … highest':>23}  case"]
    # A line per case
    for name, values in result["rounds"].items():
        spread = f"{min(values):,.4g} … {max(values):,.4g}"
        baseline = " (baseline)" if name == result["baseline"] else ""
        lines.append(
            f"{result['ratio'][name]:8.2f}x  {result['median'][name]:11,.4g}  {spread:>23}  "
            f"{name}{baseline}"
        )
    return "\n".join([*lines, f"unit: {result['unit']}"])


def write(name: str, result: dict[str, Any], folder: Path = FOLDER) -> Path:
    """Add `result` to the runs in <folder>/<name>.json, with commit, code, date and hardware.

    It takes the place of an earlier run of the same commit on the same hardware; outside of a git
    checkout, of the same code. Each run says what it measured, which differs between machines; the
    file's own `what` is its first run's.
    """
    # This run
    path = folder / f"{name}.json"
    about = {"commit": commit(), "code": code(), "date": str(date.today())}
    run = {**result, **about, "hardware": hardware()}
    # Instead of an older one; those that name no title share the file's
    old = read_json(path) if path.exists() else {"what": result["what"], "runs": []}
    before = [{"what": old["what"], **r} for r in old["runs"]]
    same = ("hardware", "commit" if run["commit"] else "code")
    runs = [r for r in before if any(r.get(key) != run[key] for key in same)]
    write_json(path, {"what": old["what"], "runs": [*runs, run]})
    return path


def code() -> str:
    """The code of pipeline/ by a short hash, which needs no git checkout."""
    return code_sha256()[:12]


def show(result: dict[str, Any]) -> None:
    """Print a result: its table, its bars and its notes."""
    print(f"\n{table(result)}", flush=True)
    for promise in result.get("bars", []):
        print(bar_line(promise), flush=True)
    for note in result.get("notes", []):
        print(note, flush=True)


def bar(
    title: str, value: float, at_least: float | None = None, at_most: float | None = None
) -> dict[str, Any]:
    """One promise: what it is about, the value measured, its bounds, and whether it holds."""
    holds = (at_least is None or value >= at_least) and (at_most is None or value <= at_most)
    return {"what": title, "value": value, "at_least": at_least, "at_most": at_most, "holds": holds}


def bar_line(bar: dict[str, Any]) -> str:
    """A promise as one line."""
    bound = f">= {bar['at_least']:g}" if bar["at_least"] is not None else f"<= {bar['at_most']:g}"
    return f"{'holds ' if bar['holds'] else 'MISSED'}  {bar['what']}: {bar['value']:.3g} ({bound})"
