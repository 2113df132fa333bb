"""Signals, exit statuses and descendants: what a launcher owes the processes that it starts.

`die_with_parent`, `become_subreaper` and `name_process` ask the Linux kernel, by prctl(2).
"""

import ctypes
import os
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType

LAUNCHED = "PIPELINE_LAUNCHED"  # set in the environment of what a launcher has started
# Codes of prctl
PR_SET_PDEATHSIG, PR_SET_NAME, PR_SET_CHILD_SUBREAPER = 1, 15, 36
# Signals that ask a job to save and leave: of people, terminals, Slurm and submitit.
STOP_SIGNALS = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
)


def handle_stop_signals(handler: Callable[[int, FrameType | None], None]) -> None:
    """Install `handler` for STOP_SIGNALS, except for a SIGHUP that nohup has us ignore."""
    for number in STOP_SIGNALS:
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def not_to_save(signals: Sequence[int]) -> bool:
    """Whether somebody wants an end at once: of the STOP_SIGNALS that came, one after the first is
    a Ctrl-C.

    All others may come twice by themselves: a terminal's shell and the kernel both tell of its end,
    and a job that Slurm cancels hears of it from Slurm and by the end of its parents.
    """
    return signal.SIGINT in signals[1:]


def keep_exit_status() -> None:
    """Ignore STOP_SIGNALS from now on, when the work is done and the process only ends.

    Python gives signals back their default action while it ends, so one that comes late would turn
    the status of finished work into a death. Ctrl-C still ends a process that hangs there.
    """
    for number in STOP_SIGNALS:
        if number != signal.SIGINT:
            signal.signal(number, signal.SIG_IGN)


def exit_status(returncode: int) -> int:
    """Exit status, as shells report it, of a process with `subprocess`'s return code.

    A process that signal n killed has return code -n and exit status 128 + n.
    """
    return returncode if returncode >= 0 else 128 - returncode


def die_with_parent(number: int, parent: int | None = None) -> None:
    """Have signal `number` sent to this process when its parent dies in any way.

    `parent`: process id of the parent, for a child before its exec, which ends at once if the
    parent is gone already.
    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
    if parent is not None and os.getppid() != parent:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


def become_subreaper() -> None:
    """Have descendants whose parents end become children of this process."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)


def name_process(name: str) -> None:
    """Give this process a name, as top and pgrep show it; of at most 15 bytes."""
    ctypes.CDLL(None).prctl(PR_SET_NAME, name.encode())


def descendants() -> list[int]:
    """Process ids of the living children, including those inherited from ended parents."""
    children: list[int] = []
    for thread in Path("/proc/self/task").iterdir():
        with suppress(OSError):
            children += map(int, (thread / "children").read_text().split())
    return [pid for pid in children if state(pid) != "Z"]


def state(pid: int) -> str:
    """The letter of a process's state; Z for one that has ended or does not exist."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def end_descendants() -> None:
    """Kill all processes that are left below this one, and wait for them."""
    while children := descendants():
        for child in children:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
            with suppress(ChildProcessError):
                os.waitpid(child, 0)
