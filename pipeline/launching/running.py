"""The jobs that run now: one small file for each, in the results folder that machines share.

`results/.running/<host>-<pid>.json` is written when a job starts, touched while it prints, and
removed when it ends; its launcher holds a lock on it, so that a file whose launcher was killed is
told from one that lives.
"""

import errno
import json
import os
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.base.errors import UserError
from pipeline.base.locks import take_lock

# When jobs are forgotten
FOLDER = Path("results/.running")
SILENT = 300  # seconds without a sign after which another machine's job counts as lost
FORGOTTEN = 86400  # … and after which nobody needs to be told of it any more


@dataclass(frozen=True)
class Entry:
    """A launched job."""

    # Who runs
    host: str
    pid: int  # of its launcher
    # What runs
    module: str
    out: str  # for people: its out= word, else its arguments
    # What it holds
    gpus: list[str]  # ids that it holds, or the Slurm job that does
    processes: int
    log: str | None
    started: float  # Unix time

    @property
    def path(self) -> Path:
        """Its file."""
        return FOLDER / f"{self.host}-{self.pid}.json"

    def is_here(self) -> bool:
        """Whether it runs on this machine."""
        return self.host == socket.gethostname()

    def silent_seconds(self) -> float:
        """Seconds since the job last gave a sign; 0 if its file is gone."""
        with suppress(FileNotFoundError):
            return max(0.0, time.time() - self.path.stat().st_mtime)
        return 0.0

    def is_alive(self) -> bool:
        """Whether its launcher lives; of another machine, whether it gave a sign lately."""
        # On another machine
        if not self.is_here():
            return self.silent_seconds() < SILENT

        # On this machine
        try:
            with self.path.open() as file:
                return not take_lock(file, shared=True)
        except FileNotFoundError:
            return False
        except OSError:  # a file system without locks
            return self.silent_seconds() < SILENT

    def is_forgotten(self) -> bool:
        """Whether it ended long ago without saying so."""
        if self.is_here():
            return not self.is_alive()
        return self.silent_seconds() >= FORGOTTEN


class Sign:
    """The file of a job that runs, held open and locked by its launcher."""

    def __init__(self, entry: Entry) -> None:
        """Write and lock a file under another name first, so that nobody sees it without a lock."""
        # Hidden until locked
        FOLDER.mkdir(exist_ok=True)
        self.path = entry.path
        hidden = self.path.with_suffix(".new")
        self.file = hidden.open("w+")
        os.fchmod(self.file.fileno(), 0o644)  # whatever the umask, since it is there to be read
        with suppress(OSError):  # a file system without locks: then only the signs of life count
            take_lock(self.file)
        self.write(entry)
        hidden.replace(self.path)

    def write(self, entry: Entry) -> None:
        """Say `entry` from now on."""
        self.file.seek(0)
        self.file.truncate()
        self.file.write(json.dumps(asdict(entry)))
        self.file.flush()

    def touch(self) -> None:
        """Give a sign of life."""
        with suppress(OSError):
            os.utime(self.path)

    def remove(self) -> None:
        """The job has ended."""
        self.path.unlink(missing_ok=True)
        self.file.close()


class Registered:
    """A job that stands in FOLDER as long as it is launched, waiting for its GPUs included."""

    def __init__(self, module: Sequence[str], processes: int, log: Path | None) -> None:
        """Nothing is written without a results folder here that this user may write to: nobody
        would look, and a sign is not worth a job.
        """
        out = (w.partition("=")[2] for w in module if w.startswith("out="))
        host, place = socket.gethostname(), str(log) if log else None
        output = os.fsencode(next(out, " ".join(module[2:]))).decode(errors="replace")
        start = time.time()
        self.entry = Entry(host, os.getpid(), module[1], output, [], processes, place, start)
        self.sign: Sign | None = None

    def __enter__(self) -> "Registered":
        with suppress(OSError):
            if FOLDER.parent.is_dir():
                self.sign = Sign(self.entry)
        return self

    def __exit__(self, *_: object) -> None:
        if self.sign:
            self.sign.remove()

    def say(self, **changes: Any) -> None:
        """Say something else of the job: fields of Entry, such as the GPUs that it has got."""
        self.entry = replace(self.entry, **changes)
        if self.sign:
            with suppress(OSError):  # a full disk
                self.sign.write(self.entry)

    def touch(self) -> None:
        """Give a sign of life."""
        if self.sign:
            self.sign.touch()


def entries() -> list[Entry]:
    """The jobs that run, the oldest first; files that were left behind go.

    Raises UserError if the folder cannot be read.
    """
    # One file each
    running = []
    for path in files():
        try:
            entry = Entry(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError):  # ended or begins just now
            continue
        if not entry.is_forgotten():
            running.append(entry)
            continue
        with suppress(OSError):  # it may be another user's
            path.unlink(missing_ok=True)
    return sorted(running, key=lambda entry: entry.started)


def files() -> list[Path]:
    """The files of jobs, of those that were left behind too."""
    try:
        return [path for path in FOLDER.iterdir() if path.suffix == ".json"]
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return []
        raise UserError(
            f"{FOLDER} cannot be read ({error.strerror}), so the jobs of this folder are not "
            "known: ask the user that it belongs to"
        ) from error
