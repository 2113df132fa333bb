"""File locks by flock(2): a lock ends with the processes that hold it, however they end."""

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from pipeline.base.errors import UserError


def take_lock(file: IO[Any] | int, shared: bool = False, wait: bool = False) -> bool:
    """Lock an open file or descriptor until it is closed; False if another process holds it.

    `shared`: any number of processes may hold it so. `wait`: until it is free. Raises OSError on a
    file system without locks.
    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(file, kind if wait else kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def no_locks(error: OSError, path: Path) -> Exception:
    """The UserError for a file system without locks; any other OSError comes back as it is."""
    if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
        return error
    return UserError(
        f"{path} cannot be locked, since its file system has no locks by flock ({error.strerror}): "
        "mount it with them (Lustre: -o flock, NFS: lockd), or work on another disk"
    )


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the run folder's lock; the kernel frees it when the holder dies in any way.

    Raises UserError naming the holder if another process has it, or if there are no locks here.
    """
    # The folder's lock
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "lock"
    with path.open("a+") as file:
        try:
            taken = take_lock(file)
        except OSError as error:
            raise no_locks(error, path) from error
        if not taken:
            raise UserError(
                f"{folder} is in use by {_holder(path)}: wait for it or stop it with kill -TERM"
            )

        # Named for others
        file.truncate(0)
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since}))
        file.flush()
        yield


def _holder(path: Path) -> str:
    try:
        holder = json.loads(path.read_text())
        return f"process {holder['pid']} on {holder['host']} (since {holder['since']})"
    except (OSError, ValueError, KeyError):
        return "another process"


def wait_until_free(folder: Path, every: float = 2.0, remind: float = 60.0) -> bool:
    """Wait while another process holds the folder's lock, naming the holder now and then.

    `every`: seconds between two looks; `remind`: seconds between two messages. Returns whether it
    had to wait.
    """
    # Reminded now and then
    waited, last_message = False, 0.0
    while is_held(folder):
        if not waited or time.monotonic() - last_message >= remind:
            print(
                f"waiting: {folder} is in use by {_holder(folder / 'lock')}; "
                "stop it with kill -TERM to go on from its last checkpoint",
                flush=True,
            )
            waited, last_message = True, time.monotonic()
        time.sleep(every)
    return waited


def is_held(folder: Path) -> bool:
    """Whether another process holds the folder's lock now."""
    return is_locked(folder / "lock")


def is_locked(path: Path) -> bool:
    """Whether another process holds the lock of a file; False if the file does not exist.

    Raises UserError if there are no locks here.
    """
    try:
        with path.open("r+") as file:
            return not take_lock(file)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise no_locks(error, path) from error
