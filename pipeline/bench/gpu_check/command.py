"""Check that this machine's GPU computes what the pipeline promises: `make gpu-check`, or

python -m pipeline.bench gpu-check [--device cpu] [--no-record] [NAME ...]

Ends with a table of checks, each `ok`, `FAILED: what` or `n/a: why`; exit status 1 if any failed.
Without a GPU the checks that mean something on a CPU run there. NAME: groups or checks (parts of
their names); a run of some is not recorded. Every group has a separate process, so that none can
take the others down, and a limit of time.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from pipeline.base.processes import become_subreaper, descendants
from pipeline.bench import record
from pipeline.bench.gpu_check.check import FAILED, NOT_APPLICABLE, OK, Check, Outcome
from pipeline.bench.gpu_check.group import checks_of

NAMES = (
    "numbers", "networks", "attention", "training", "sharding", "memory", "sampling", "workloads",
    "scoring", "processes",
)  # fmt: skip
GROUPS = {name: f"pipeline.bench.gpu_check.{name}" for name in NAMES}
LIMIT = 480.0  # seconds of all groups together
SHARE = 0.5  # of the limit, for one group at most: one that hangs leaves time to the others
PATIENCE = 10.0  # seconds in which the helpers of a process that has ended must end, too
NONE_LEFT = "no process is left"


def chosen(group: str, names: Sequence[str]) -> list[Check]:
    """The checks of a group that `names` choose; all of them without names."""
    checks = checks_of(GROUPS[group])
    if not names or group in names:
        return list(checks)
    words = [name for name in names if name not in GROUPS]
    return [check for check in checks if any(word in check.name for word in words)]


def run_group(group: str, checks: Sequence[Check], device: str, seconds: float) -> list[Outcome]:
    """The outcomes of `checks` of one group, of a process that may take so many seconds."""
    waiting = [check for check in checks if device != "cpu" or not check.not_on_cpu]
    absent = [check for check in checks if check not in waiting]
    outcomes = [Outcome(c.name, NOT_APPLICABLE, c.not_on_cpu, why=c.why) for c in absent]
    if not waiting:
        return outcomes
    with TemporaryDirectory() as folder:
        out = Path(folder, "outcomes.jsonl")
        end = in_process(group, device, out, [check.name for check in waiting], seconds)
        lines = out.read_text().splitlines() if out.exists() else []
    outcomes += [Outcome.from_json(json.loads(line)) for line in lines]
    reached = {outcome.name for outcome in outcomes}
    return [*outcomes, *(Outcome(c.name, FAILED, end) for c in waiting if c.name not in reached)]


def in_process(group: str, device: str, out: Path, names: list[str], seconds: float) -> str:
    """Run checks in a separate process; returns how it ended, for those that have no outcome."""
    if seconds <= 0:
        return "there was no time left"
    command = [sys.executable, "-m", "pipeline.bench.gpu_check.group", GROUPS[group]]
    process = subprocess.Popen(
        [*command, device, str(out), *names], cwd=record.ROOT, env=environment()
    )
    try:
        status = process.wait(seconds)
    except subprocess.TimeoutExpired:
        return f"it was stopped after {seconds:.0f} s"
    finally:
        process.kill()
        process.wait()
    how = f"with status {status}" if status >= 0 else f"by {signal.Signals(-status).name}"
    return f"the process of {group} ended {how}"


def environment() -> dict[str, str]:
    """The variables of a group: cuBLAS can be asked for the same bits, gloo meets on this machine
    whatever its name means, and devices are counted as leases count them.
    """
    defaults = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "GLOO_SOCKET_IFNAME": "lo"}
    return {**defaults, "CUDA_DEVICE_ORDER": "PCI_BUS_ID", **os.environ}


def left_processes(group: str, before: set[int], patience: float) -> list[str]:
    """The processes, by their commands, that a group has left below this one; they are ended.

    `before`: those that were there before it. Its helpers have `patience` seconds to end.
    """
    until = time.monotonic() + patience
    while (left := set(descendants()) - before) and time.monotonic() < until:
        time.sleep(0.1)
    names = [f"{command_of(pid)} of {group}" for pid in left]
    while left := set(descendants()) - before:
        for pid in left:
            with suppress(ProcessLookupError, ChildProcessError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
    return names


def command_of(pid: int) -> str:
    """The command of a process, cut short."""
    with suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
        return " ".join(words)[:80].strip()
    return f"process {pid}"


def run(
    names: Sequence[str], device: str, limit: float, patience: float = PATIENCE
) -> list[Outcome]:
    """The outcomes of all checks that `names` choose, and whether a process was left.

    All may take `limit` seconds, one SHARE of them; `patience`: see left_processes.
    """
    # Group by group
    become_subreaper()
    until, before = time.monotonic() + limit, set(descendants())
    outcomes: list[Outcome] = []
    left: list[str] = []
    for group in GROUPS:
        seconds = min(until - time.monotonic(), SHARE * limit)
        outcomes += run_group(group, chosen(group, names), device, seconds)
        left += left_processes(group, before, patience)
    # Nobody behind
    state, text = (FAILED, "; ".join(left)) if left else (OK, "")
    why = "an orphan holds its GPU"
    return [*outcomes, Outcome(NONE_LEFT, state, text, len(left), None, 0, "processes", why)]


# --- what is told --------------------------------------------------------------------------------


def cells(outcome: Outcome) -> tuple[str, ...]:
    """A row of the table."""
    state = f"{outcome.state}: {outcome.text}" if outcome.state != OK else OK
    figure = "" if outcome.value is None else f"{outcome.value:.3g}"
    least = "" if outcome.at_least is None else f"{outcome.at_least:g} to "
    bound = "" if outcome.at_most is None else f"{least}{outcome.at_most:g} {outcome.unit}"
    note = outcome.text if outcome.state == OK else ""
    return outcome.name, figure, bound, f"{outcome.seconds:.1f}", f"{state}  {note}".strip()


def table(outcomes: Sequence[Outcome]) -> str:
    """The outcomes as a table: check, figure, bound, seconds, state."""
    rows = [("check", "figure", "at most", "s", "state"), *map(cells, outcomes)]
    widths = [max(len(row[k]) for row in rows) for k in range(4)]
    return "\n".join(
        f"{row[0]:{widths[0]}}  {row[1]:>{widths[1]}}  {row[2]:{widths[2]}}  "
        f"{row[3]:>{widths[3]}}  {row[4]}"
        for row in rows
    )


def result(outcomes: Sequence[Outcome], device: str, seconds: float) -> dict[str, Any]:
    """The run as pipeline.bench.record keeps it."""
    counts = {s: sum(o.state == s for o in outcomes) for s in (OK, FAILED, NOT_APPLICABLE)}
    return {
        "what": "checks of a GPU against a CPU and float64",
        "device": device,
        "states": counts,
        "seconds": round(seconds, 1),
        "checks": [outcome.to_json() for outcome in outcomes],
    }


def parsed(argv: Sequence[str]) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(prog="pipeline.bench gpu-check", description="check a GPU")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{NAMES}, or parts of names")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--seconds", type=float, default=LIMIT, help="limit of all together")
    parser.add_argument("--no-record", action="store_true", help="print only")
    options = parser.parse_args(argv)
    if not any(chosen(group, options.names) for group in GROUPS):
        parser.error(f"no check is called {' or '.join(options.names)}")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda, but torch finds no CUDA device")
    return options


def main(argv: Sequence[str]) -> int:
    """Entry point; returns the exit status."""
    options, began = parsed(argv), time.monotonic()
    cuda = options.device != "cpu" and torch.cuda.is_available()
    device = "cuda:0" if cuda else "cpu"
    print(f"checks on {device if cuda else 'the CPU'}", flush=True)
    outcomes = run(options.names, device, options.seconds)
    summary = result(outcomes, device, time.monotonic() - began)
    print(f"\n{table(outcomes)}\n")
    states = ", ".join(f"{count} {state}" for state, count in summary["states"].items())
    print(f"{states}, in {summary['seconds']:.0f} s on {device}")
    if not options.no_record and not options.names:
        print(f"record: {record.write('gpu-check', summary)}", flush=True)
    return 1 if summary["states"][FAILED] else 0
