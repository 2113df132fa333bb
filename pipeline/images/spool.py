"""A pack in the making: the rows so far, and a journal of the stretches that are finished.

`<pack>/.making/` holds

    header.json    everything that the rows depend on; if it differs, the making starts anew
    rows.npy       one row per image of the source, in the source's order
    journal.jsonl  one line per finished stretch, written after its rows have reached the disk

so that a run that goes on after any kind of end skips every finished stretch whose images are the
same and whose rows are what the journal says. When all are finished, assemble.py puts the
rows into the pack's order.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline.base.files import disk_error, read_json, sha256_json, write_json
from pipeline.base.npy import IMAGES_HEADER_BYTES, write_header
from pipeline.images.sources.base import Stretch


@dataclass(frozen=True)
class Written:
    """The outcome of several images whose rows are written, as one message from a worker."""

    # Rows that are written
    digests: bytes  # of the rows
    problems: dict[int, str]  # place -> why there are no pixels
    # For the manifest
    traits: Counter[str]
    sizes: Counter[str]  # <width>x<height> before, px


@dataclass
class Unfinished:
    """The stretch that is being written."""

    # Outcome so far
    problems: dict[int, str] = field(default_factory=dict)  # place in the stretch -> reason
    traits: Counter[str] = field(default_factory=Counter)
    sizes: Counter[str] = field(default_factory=Counter)
    digest: Any = field(default_factory=hashlib.sha256)  # of its rows' digests


class Line(NamedTuple):
    """A line of the journal: a stretch that is finished."""

    # Which stretch
    stretch: str
    first: int  # images of the source before it
    listing: str  # hash over the names and sizes of its images
    # Which images
    names: list[str]
    problems: dict[int, str]  # place in the stretch -> why there are no pixels
    # Their outcome
    traits: dict[str, int]
    sha256: str  # of its rows' digests
    sizes: dict[str, int]  # number of images by <width>x<height> before, px

    @classmethod
    def read(cls, content: bytes) -> "Line":
        """The line in its JSON, where places are strings."""
        keys = json.loads(content)
        problems = {int(place): reason for place, reason in keys.pop("problems").items()}
        return cls(problems=problems, **keys)

    def write(self) -> bytes:
        """The line as JSON."""
        return json.dumps(self._asdict()).encode() + b"\n"


# --- rows ----------------------------------------------------------------------------------------


def write_rows(path: Path, first: int, pixels: np.ndarray) -> bytes:
    """Write pixels (n, resolution, resolution, 3) uint8 as rows `first`, `first` + 1, … of a file.

    Several processes may write rows of one file at the same time. Returns the rows' digests, and
    leaves fsync to the caller. Raises UserError if the disk is full.
    """
    # Place in the file
    data = pixels.reshape(-1).data
    offset = IMAGES_HEADER_BYTES + first * pixels[0].nbytes

    # All bytes, or an error
    try:
        file = os.open(path, os.O_WRONLY)
        try:
            while data:
                written = os.pwrite(file, data, offset)
                data, offset = data[written:], offset + written
        finally:
            os.close(file)
    except OSError as error:
        raise disk_error(error, path) from error
    return b"".join(digest(row.data) for row in pixels)


def digest(row: bytes | memoryview) -> bytes:
    """The sha256 of a row's bytes, by which a changed row is known."""
    return hashlib.sha256(row).digest()


# --- journal -------------------------------------------------------------------------------------


class Spool:
    """Rows (resolution, resolution, 3) uint8 by their place in the source, and their journal."""

    def __init__(self, folder: Path, resolution: int, header: dict[str, object]) -> None:
        """Open `folder`/.making, emptied if its rows depend on something else than `header`.

        The caller holds a lock on the folder.
        """
        # Folder and row size
        self.folder = folder
        self.shape = (resolution, resolution, 3)
        self.row_bytes = resolution * resolution * 3
        # Rows and journal
        self.rows_file, self.journal_file = folder / "rows.npy", folder / "journal.jsonl"
        self._start_anew_if_other(header)
        for old in (folder / "images.npy", *folder.glob(".*.tmp")):  # sorted by a killed run
            old.unlink(missing_ok=True)
        self._finished = dict(self._read_journal())  # stretch -> (start, end) of its last line
        rows = os.open(self.rows_file, os.O_RDWR | os.O_CREAT, 0o666)
        self._rows = os.fdopen(rows, "r+b", buffering=0)  # workers write there too
        self._journal = self.journal_file.open("ab")
        # The unfinished stretch
        self._now = Unfinished()
        self.used: list[str] = []  # stretches of this source so far, in its order

    def _start_anew_if_other(self, header: dict[str, object]) -> None:
        # The same work as before
        path = self.folder / "header.json"
        if path.exists() and read_json(path) == header:
            return

        # Another one
        if self.journal_file.exists():
            print("downsample: other images, recipe or libraries than before: starting anew")
        for file in (path, self.rows_file, self.journal_file):
            file.unlink(missing_ok=True)
        write_json(path, header)

    def _read_journal(self) -> Iterator[tuple[str, tuple[int, int]]]:
        """The whole lines of the journal; one that a kill cut short is taken off."""
        if not self.journal_file.exists():
            return
        # Whole lines only
        end = 0
        with self.journal_file.open("rb") as stream:
            for line in stream:
                if not line.endswith(b"\n"):
                    break
                yield json.loads(line)["stretch"], (end, end + len(line))
                end += len(line)
        os.truncate(self.journal_file, end)

    def line(self, stretch: str) -> Line:
        """The journal's last line about a stretch."""
        start, end = self._finished[stretch]
        with self.journal_file.open("rb") as stream:
            stream.seek(start)
            return Line.read(stream.read(end - start))

    # --- going on ------------------------------------------------------------------------------

    def skip(self, stretch: Stretch, first: int) -> bool:
        """Whether the stretch is finished: same images, same rows, none left out.

        Images that were left out are tried again: they may have been mended. To be called for each
        stretch of the source once, in order.
        """
        # Before it is finished: workers lag behind, and later stretches may be skipped meanwhile
        self.used.append(stretch.name)

        # Not finished yet
        if stretch.name not in self._finished:
            return False

        # Unchanged since then
        line = self.line(stretch.name)
        same = (line.first, line.listing) == (first, listing(stretch)) and not line.problems
        return same and self._hash(first, len(stretch.items)) == line.sha256

    def _hash(self, first: int, count: int) -> str:
        """The hash of the digests of `count` rows, or of as many as there are."""
        self._rows.seek(IMAGES_HEADER_BYTES + first * self.row_bytes)
        rows = hashlib.sha256()
        for _ in range(count):
            rows.update(digest(self._rows.read(self.row_bytes)))
        return rows.hexdigest()

    # --- writing -------------------------------------------------------------------------------

    def note(self, start: int, written: Written) -> None:
        """Add written rows to the stretch; `start` is the place of their first in it."""
        self._now.problems.update({start + k: why for k, why in written.problems.items()})
        self._now.traits.update(written.traits)
        self._now.sizes.update(written.sizes)
        self._now.digest.update(written.digests)

    def finish(self, stretch: Stretch, first: int) -> None:
        """Let the rows of a stretch reach the disk, then its line in the journal."""
        # the line, with its outcome so far
        content = Line(
            stretch=stretch.name,
            first=first,
            listing=listing(stretch),
            names=[item.name for item in stretch.items],
            problems=self._now.problems,
            traits=self._now.traits,
            sha256=self._now.digest.hexdigest(),
            sizes=self._now.sizes,
        ).write()
        # rows before the line that speaks of them
        try:
            os.fsync(self._rows.fileno())  # whichever process wrote the rows
            start = self.journal_file.stat().st_size
            self._journal.write(content)
            self._journal.flush()
            os.fsync(self._journal.fileno())
        except OSError as error:
            raise disk_error(error, self.rows_file) from error
        # the next stretch
        self._finished[stretch.name] = (start, start + len(content))
        self._now = Unfinished()

    def complete(self, num_images: int) -> None:
        """Write the header of rows.npy, so that it is a .npy of `num_images` rows."""
        self._rows.seek(0)
        write_header(self._rows, (num_images, *self.shape))
        assert self._rows.tell() == IMAGES_HEADER_BYTES
        self._rows.truncate(IMAGES_HEADER_BYTES + num_images * self.row_bytes)
        os.fsync(self._rows.fileno())

    def close(self) -> None:
        """Close the files; data that a full disk does not take is given up."""
        for file in (self._rows, self._journal):
            with suppress(OSError):  # no journal line speaks of it
                file.close()


def listing(stretch: Stretch) -> str:
    """A hash over the names and sizes of a stretch's images."""
    return sha256_json([(item.name, item.size) for item in stretch.items])
