"""Ask the kernel for a signal when the parent process dies (Linux prctl(2))."""

import ctypes
import os
import signal

PR_SET_PDEATHSIG = 1


def die_with_parent(number: int, parent: int | None = None) -> None:
    """Have signal `number` sent to this process when its parent dies in any way.

    `parent`: its process id, for a child before its exec, which ends at once where it is gone.
    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
    if parent is not None and os.getppid() != parent:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
