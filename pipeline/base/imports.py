"""Imports of large packages without the garbage collector, which is a third of their time."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing() -> Iterator[None]:
    """Import what follows while nothing is collected, and have no collection look at it later.

    Modules stay until the process ends, so looking for garbage among their objects finds none; the
    last look, as the process ends, would be the longest. Changes nothing if no module is new.
    """
    known, enabled = len(sys.modules), gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) > known:
            gc.freeze()
        if enabled:
            gc.enable()
