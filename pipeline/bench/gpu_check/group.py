"""The checks of one group, in this process: python -m pipeline.bench.gpu_check.group MODULE …

Each outcome is written as soon as there is one: should the process die, the others remain.
"""

import json
import signal
import sys
from functools import partial
from importlib import import_module
from pathlib import Path

import torch

from pipeline.base.processes import become_subreaper, die_with_parent
from pipeline.bench.gpu_check.check import Check, Figure, run_check


def checks_of(module: str) -> tuple[Check, ...]:
    """The table of a module; if it needs a package that is missing, one row that says so."""
    try:
        checks: tuple[Check, ...] = import_module(module).CHECKS
    except ModuleNotFoundError as error:
        return (Check(f"all of {module.rpartition('.')[2]}", partial(raised, error), ""),)
    return checks


def raised(error: Exception, device: torch.device) -> Figure:
    """Fails with `error`."""
    raise error


def main(module: str, device: str, out: str, *names: str) -> None:
    """Run the checks `names` of a module, a line of JSON each into the file `out`."""
    die_with_parent(signal.SIGKILL)
    become_subreaper()  # what a check has started ends with it, or is noticed
    with Path(out).open("a") as lines:
        for check in (check for check in checks_of(module) if check.name in names):
            outcome = run_check(check, torch.device(device))
            print(f"{outcome.state:6}  {outcome.name}  ({outcome.seconds:.1f} s)", flush=True)
            lines.write(json.dumps(outcome.to_json()) + "\n")
            lines.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
