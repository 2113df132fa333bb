"""Ask the kernel for a signal when the parent process dies (Linux prctl(2))."""

import ctypes

PR_SET_PDEATHSIG = 1


def die_with_parent(number: int) -> None:
    """Have signal `number` sent to this process when its parent dies in any way."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
