"""What runs now: one small file for each launched job, in the results folder that machines share.

`results/.running/<host>-<pid>.json` is written when a job starts, touched while it prints, and
removed when it ends; its launcher holds a lock on it, so that a file whose launcher was killed is
told from one that lives.
"""

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.files import write_json

FOLDER = Path("results/.running")
SILENT = 300  # seconds without a sign after which another machine's job counts as lost


@dataclass(frozen=True)
class Entry:
    """A launched job."""

    host: str
    pid: int  # of its launcher
    module: str
    out: str  # what it makes, for people: its out= word, else its arguments
    gpus: list[str]  # ids that it holds
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
        """Seconds since the job last gave a sign; 0 where its file is gone."""
        with suppress(FileNotFoundError):
            return max(0.0, time.time() - self.path.stat().st_mtime)
        return 0.0

    def is_alive(self) -> bool:
        """Whether its launcher lives; of another machine, whether it gave a sign lately."""
        if not self.is_here():
            return self.silent_seconds() < SILENT
        try:
            with self.path.open() as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False


@contextmanager
def registered(
    module: Sequence[str], gpus: Sequence[str], processes: int, log: Path | None
) -> Iterator[Path | None]:
    """Stand in FOLDER as long as the block lasts; yields the file, to be touched.

    None where there is no results folder in this one: then there is nothing to look at either.
    """
    if not FOLDER.parent.is_dir():
        yield None
        return
    out = next((w.partition("=")[2] for w in module if w.startswith("out=")), " ".join(module[2:]))
    host, place = socket.gethostname(), str(log) if log else None
    entry = Entry(host, os.getpid(), module[1], out, [*gpus], processes, place, time.time())
    FOLDER.mkdir(exist_ok=True)
    write_json(entry.path, asdict(entry))
    with entry.path.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield entry.path
        finally:
            entry.path.unlink(missing_ok=True)


def entries() -> list[Entry]:
    """The jobs that run, the oldest first; files that were left behind on this machine go."""
    found = []
    for path in FOLDER.glob("*.json"):
        try:
            entry = Entry(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError):  # ended or begins just now
            continue
        if entry.is_alive() or not entry.is_here():
            found.append(entry)
        else:
            path.unlink(missing_ok=True)
    return sorted(found, key=lambda entry: entry.started)
