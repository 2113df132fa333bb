"""Ask the kernel for a signal when the parent process dies (Linux prctl(2))."""

import ctypes
import os
import signal
from contextlib import suppress
from pathlib import Path

PR_SET_PDEATHSIG = 1


def die_with_parent(number: int, parent: int | None = None) -> None:
    """Have signal `number` sent to this process when its parent dies in any way.

    `parent`: its process id, for a child before its exec, which ends at once where it is gone.
    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
    if parent is not None and os.getppid() != parent:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


PR_SET_CHILD_SUBREAPER = 36  # Linux prctl(2)


def become_subreaper() -> None:
    """Have descendants whose parents end become our children."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)


def descendants() -> list[int]:
    """Process ids of our living children, those that came to us from ended parents included."""
    found: list[int] = []
    for thread in Path("/proc/self/task").iterdir():
        with suppress(OSError):
            found += map(int, (thread / "children").read_text().split())
    return [pid for pid in found if state(pid) != "Z"]


def state(pid: int) -> str:
    """The letter of a process's state; Z of one that has ended, and of one that is no more."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def end_descendants() -> None:
    """Kill all that is left below this process, and wait for it."""
    while children := descendants():
        for child in children:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
            with suppress(ChildProcessError):
                os.waitpid(child, 0)
