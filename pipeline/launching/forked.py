"""Ranks as forks of torchrun's agent, which has imported for all of them what they start with.

torch starts each rank as a new interpreter, which then imports torch and more: seconds of processor
time per rank, and on a network's disk as many readers as ranks. A fork has it all. In what a rank
can notice it is as a new process: its session, variables and words, default signal handlers, the
standard streams and no other file.

A fork could not use CUDA if the agent had started it. No import does; should one have, a new
interpreter takes the place of the fork. The agent's threads, those of torch's store, are not in the
fork, which needs none of them.
"""

import atexit
import gc
import importlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch.distributed.elastic.multiprocessing import api

from pipeline.base.errors import run_main
from pipeline.base.imports import importing
from pipeline.steps import Step

POLL_S = 0.02  # between looks at a rank that is to end


def fork_ranks(step: Step) -> None:
    """Have torch's agent fork the ranks of a step from this process, with its imports."""
    with importing():
        for name in step.imports:
            importlib.import_module(name)

    def handler(entrypoint: str, args: tuple[Any, ...], env: dict[str, str], **_: Any) -> Rank:
        return Rank(step, [entrypoint, *map(str, args)], os.environ | env)

    api.get_subprocess_handler = handler  # type: ignore[assignment]


class Rank:
    """A forked rank, with what torch's agent asks of the process and of its handler."""

    def __init__(self, step: Step, command: list[str], environment: Mapping[str, str]) -> None:
        """Fork it; `command` would start it as a new interpreter."""
        self.proc = self
        self.returncode: int | None = None  # as `subprocess` has it
        self.pid = fork(step, command, environment)

    def poll(self) -> int | None:
        """Its return code; None while it runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, timeout: float) -> int:
        """Its return code; raises subprocess.TimeoutExpired if it runs on for `timeout` seconds."""
        end = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired("rank", timeout)
            time.sleep(POLL_S)
        return code

    def close(self, death_sig: signal.Signals = signal.SIGTERM) -> None:
        """Send a signal to its session, which has not been waited for."""
        os.killpg(self.pid, death_sig)


def fork(step: Step, command: list[str], environment: Mapping[str, str]) -> int:
    """Process id of a fork that runs a step, once it is in a separate session."""
    # Nothing is printed twice, and no signal meets the agent's handlers in the fork
    sys.stdout.flush()
    sys.stderr.flush()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    ready, started = os.pipe()
    try:
        if not (pid := os.fork()):
            run_rank(step, command, environment, mask)
        os.close(started)
        os.read(ready, 1)  # ends as the fork closes its files
        os.close(ready)
        return pid
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def run_rank(
    step: Step, command: list[str], environment: Mapping[str, str], mask: Iterable[int]
) -> NoReturn:
    """Run the step as `command` would, python -u -m MODULE and its words, and end the process.

    It ends as multiprocessing's forks do, since the agent's objects are not to be torn down here.
    `mask`: the signals to be blocked.
    """
    status = 1
    try:
        become_rank(environment)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if torch.cuda._is_in_bad_fork():
            os.execve(command[0], command, os.environ)
        module = sys.modules[step.module]
        sys.argv = [str(module.__file__), *command[4:]]
        run_main(module.main)
    except SystemExit as end:
        if isinstance(end.code, str):  # the reason
            print(end.code, file=sys.stderr)
        else:
            status = end.code or 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def become_rank(environment: Mapping[str, str]) -> None:
    """Leave behind what a new process would not have."""
    os.setsid()
    gc.freeze()  # what the agent has left unused may hold files, whose numbers others get here
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(environment)
    for entry in Path("/proc/self/fd").iterdir():
        if int(entry.name) > 2:
            with suppress(OSError):  # the folder's own
                os.close(int(entry.name))
