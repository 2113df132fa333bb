"""One process at a time at work in a folder; a lock ends with its holder, however that ends."""

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.base.errors import UserError


def _holder(path: Path) -> str:
    try:
        held = json.loads(path.read_text())
        return f"process {held['pid']} on {held['host']} (since {held['since']})"
    except (OSError, ValueError, KeyError):
        return "another process"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the run folder's lock; the kernel frees it when the holder dies in any way.

    Raises UserError naming the holder where another trainer has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "lock"
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"{folder} is in use by {_holder(path)}: wait for it or stop it with kill -TERM"
            ) from error
        file.truncate(0)
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since}))
        file.flush()
        yield


def wait_until_free(folder: Path, every: float = 2.0, remind: float = 60.0) -> bool:
    """Wait while another process holds the folder's lock, naming the holder now and then.

    Returns whether it had to wait.
    """
    waited, told = False, 0.0
    while is_held(folder):
        if not waited or time.monotonic() - told >= remind:
            print(
                f"waiting: {folder} is in use by {_holder(folder / 'lock')}; "
                "stop it with kill -TERM to go on from where it is",
                flush=True,
            )
            waited, told = True, time.monotonic()
        time.sleep(every)
    return waited


def is_held(folder: Path) -> bool:
    """Whether another process holds the folder's lock now."""
    return is_locked(folder / "lock")


def is_locked(path: Path) -> bool:
    """Whether another process holds the lock of a file."""
    try:
        with path.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return False
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
