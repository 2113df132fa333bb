"""The program of ranks: a step of this project, or another project's module in its own environment.

Of a step everything is known. Of another program nothing is: neither whether it saves when it is
told to stop, nor whether it would read the terminal. Its interpreter and its module are looked at
before anything starts.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from pipeline.base.errors import EXIT_RESUMABLE, UserError
from pipeline.base.processes import exit_status
from pipeline.launching import probe

ROOT = Path(__file__).resolve().parents[2]  # of this project
PROBE_S = 300.0  # torch may come from a slow disk
TERMINATED = exit_status(-signal.SIGTERM)


@dataclass(frozen=True)
class Program:
    """A module with its arguments, and the interpreter that runs it."""

    module: list[str]  # -m MODULE and its arguments
    python: str = sys.executable
    is_step: bool = True  # of this project: it saves when told to stop, and then exits with 75
    reads_stdin: bool = True  # else its ranks get /dev/null

    @property
    def name(self) -> str:
        """The module's name."""
        return self.module[1]

    @property
    def stdin(self) -> int | IO[Any] | None:
        """`subprocess`'s stdin for its processes."""
        return None if self.reads_stdin else subprocess.DEVNULL

    def options(self) -> list[str]:
        """Words by which another launcher starts the same program."""
        if self.is_step:
            return []
        return ["--python", self.python, *(["--stdin"] if self.reads_stdin else [])]

    def variables(self) -> dict[str, str]:
        """Environment variables that tell torchrun the interpreter, if it is another one."""
        return {} if self.python == sys.executable else {"PYTHON_EXEC": self.python}

    def status_after_stop(self, status: int, number: int) -> int:
        """The launcher's exit status if signal `number` stopped it; `status` is the program's.

        A step that did not come to its end can go on: 75. So can another program that exits with
        75 itself; of the rest nobody knows, and the status is that of the signal. Says which.
        """
        # A step says it itself
        if self.is_step:
            return EXIT_RESUMABLE if status else 0

        # Another program
        by = f"stopped by {signal.Signals(number).name}"
        if status == 0:
            said = f"{self.name} ended with exit status 0"
        elif status == EXIT_RESUMABLE:
            said = f"{self.name} says that it can go on (exit status {status})"
        else:
            said = f"nothing says that {self.name} saved its state (exit status {status})"
            status = exit_status(-number)
        print(f"{by}: {said}", file=sys.stderr, flush=True)
        return status


def environment_for(python: str, environment: Mapping[str, str]) -> dict[str, str]:
    """`environment` for an interpreter.

    Another one than this does not get this project's folder, which is in PYTHONPATH if the launcher
    is started elsewhere and would hide modules of the same names that are installed there.
    """
    result = dict(environment)
    if python != sys.executable and "PYTHONPATH" in result:
        folders = result["PYTHONPATH"].split(os.pathsep)
        kept = [folder for folder in folders if Path(folder).resolve() != ROOT]
        result["PYTHONPATH"] = os.pathsep.join(kept)
    return result


def worst(statuses: Iterable[int]) -> int:
    """The exit status of ranks that were stopped, by the status of each.

    If one left with 75, those that SIGTERM ended were not needed to save.
    """
    found = set(statuses)
    return max(found - {TERMINATED} if EXIT_RESUMABLE in found else found)


def interpreter(path: str) -> str:
    """The absolute path of an interpreter that is given by path or by name.

    A link stays one: by it a virtual environment is known. Raises UserError if there is none.
    """
    file = shutil.which(path)
    if file is None:
        raise UserError(
            f"--python={path} is not an executable file: give the interpreter of the program's "
            "environment, such as its bin/python"
        )
    return str(Path(file).absolute())


def check(program: Program, needs_torch: bool) -> None:
    """Raise UserError if a program's interpreter cannot start it.

    `needs_torch`: whether that it imports torch is still to be seen.
    """
    facts, ended = looked_at(program, needs_torch)
    if "version" not in facts:
        raise UserError(f"--python={program.python} does not answer as a Python 3 does ({ended})")
    if needs_torch and "torch" not in facts:
        raise UserError(
            f"--python={program.python} (Python {'.'.join(map(str, facts['version']))}) cannot "
            f"import torch ({facts.get('torch_error', ended)}): install it in that environment, or "
            "name another one"
        )
    if facts.get("module") is False:
        remedy = "its folder" if needs_torch else "its folder, or give its environment's --python"
        raise UserError(
            f"{program.python} finds no module {program.name} that it could run, in {Path.cwd()} "
            f"or elsewhere: start the launcher in {remedy}"
        )


def looked_at(program: Program, needs_torch: bool) -> tuple[dict[str, Any], str]:
    """The facts of `probe` about a program's interpreter and module, and how the probe ended."""
    # As -m finds it: in this folder
    words = [program.python, "-c", Path(probe.__file__).read_text(), program.name]
    words += ["torch"] if needs_torch else []
    try:
        done = subprocess.run(
            words,
            env=environment_for(program.python, os.environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PROBE_S,
            check=False,
        )
    except OSError as error:
        return {}, str(error.strerror)
    except subprocess.TimeoutExpired:
        return {}, f"no answer in {PROBE_S:.0f} s"

    # One fact a line
    facts: dict[str, Any] = {}
    for line in os.fsdecode(done.stdout).splitlines():
        if line.startswith(probe.MARK):
            facts |= json.loads(line.removeprefix(probe.MARK))
    return facts, f"exit status {exit_status(done.returncode)}"
