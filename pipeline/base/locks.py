"""File locks by flock(2): a lock ends with the processes that hold it, however they end."""

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

from pipeline.base.errors import NO_RIGHT, UserError, without_right

TRIES, LOOK = 5, 0.05  # times that a lock is asked for, and the seconds after each


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
    """The UserError for a file that this user may not open, or a file system without locks.

    Any other OSError comes back as it is.
    """
    if error.errno in NO_RIGHT:
        return UserError(without_right(error))
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
    path = folder / "lock"
    with ExitStack() as stack:
        # The folder's lock
        for _ in range(TRIES):
            if file := _taken(path):
                stack.enter_context(file)
                break
            time.sleep(LOOK)  # a process that looks whether it is held has it for a moment
        else:
            raise UserError(
                f"{folder} is in use by {_holder(path)}: wait for it or stop it with kill -TERM"
            )

        # Named for others
        file.truncate(0)
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since}))
        file.flush()
        yield


def _taken(path: Path) -> IO[str] | None:
    """The file `path`, open and locked; None if another process holds it, or has just removed it.

    Raises UserError if there are no locks here, PermissionError if the file may not be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a+")
    try:
        if take_lock(file) and is_still(path, file.fileno()):
            return file
    except OSError as error:
        file.close()
        raise no_locks(error, path) from error
    file.close()
    return None


def is_still(path: Path, descriptor: int) -> bool:
    """Whether an opened file is the one that others find under its name."""
    try:
        current = path.stat()
    except FileNotFoundError:
        return False
    opened = os.fstat(descriptor)
    return (current.st_dev, current.st_ino) == (opened.st_dev, opened.st_ino)


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

    A shared lock needs no right to write, so other users' files are looked at too. Raises UserError
    if the file cannot be read, or there are no locks here.
    """
    try:
        with path.open() as file:
            return not take_lock(file, shared=True)  # so that several may look at once
    except FileNotFoundError:
        return False
    except OSError as error:
        raise no_locks(error, path) from error
