"""Files below a folder, and those that are passed over: one way to walk for packing and scoring."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.images.formats import HEAD_BYTES, begins_as_image, is_hidden, is_image

NAMED = 3  # files that a message names


@dataclass
class Ignored:
    """Files of an image set that are not read, since their names are not those of images."""

    # All of them
    num: int = 0
    names: list[str] = field(default_factory=list)  # the first NAMED
    # Those with images
    num_images: int = 0  # of them, those that hold an image all the same; hidden ones aside
    images: list[str] = field(default_factory=list)  # the first NAMED of those

    def add(self, name: str, head: bytes) -> None:
        """Count a file by its name and its first HEAD_BYTES bytes."""
        self.num += 1
        self.names += [name] if len(self.names) < NAMED else []
        if begins_as_image(head) and not is_hidden(name):
            self.num_images += 1
            self.images += [name] if len(self.images) < NAMED else []

    def add_files(self, folder: Path, names: Iterable[str]) -> None:
        """Count files of a folder by their paths in it."""
        for name in names:
            self.add(name, first_bytes(folder / name))


def first_bytes(file: Path) -> bytes:
    """The beginning of a plain file; empty if it is not one or cannot be read."""
    try:
        if not file.is_file():  # a pipe would be waited for
            return b""
        with file.open("rb", buffering=0) as stream:
            return stream.read(HEAD_BYTES)
    except OSError:
        return b""


def listed(names: list[str], num: int) -> str:
    """The first names of `num`, in a message: "a, b and 7 more"."""
    more = num - len(names)
    return ", ".join(names) + (f" and {more} more" if more else "")


def list_folder(folder: str | Path) -> tuple[list[str], list[str]]:
    """Names of the folders that are not hidden, and of everything else.

    That includes hidden folders, so that they are counted among what is passed over.
    """
    with os.scandir(folder) as scan:
        entries = [(entry.name, entry.is_dir()) for entry in scan]
    folders = [name for name, is_folder in entries if is_folder and not is_hidden(name)]
    return folders, [name for name, is_folder in entries if not is_folder or is_hidden(name)]


def walk(folder: str | Path) -> tuple[list[str], list[str]]:
    """Paths in `folder` of the images at any depth, sorted, and of all other files.

    Hidden files and folders are among the others, and are not entered. Links are followed, but
    never into a folder that is being walked or lies above.
    """
    images: list[str] = []
    other_files: list[str] = []
    folder = Path(folder).resolve()
    for name in files_below(folder, "", frozenset(map(identity, folder.parents))):
        (images if is_image(name) else other_files).append(name)
    return sorted(images), sorted(other_files)


def files_named(folder: Path, ending: str) -> list[Path]:
    """Files at any depth whose names end so, sorted, as `walk` finds them; none if no folder."""
    names = walk(folder)[1] if folder.is_dir() else []
    return sorted(folder / name for name in names if name.endswith(ending))


def files_below(folder: Path, prefix: str, above: frozenset[tuple[int, int]]) -> Iterator[str]:
    """Names of all files at any depth, each after `prefix`.

    `above`: device and number of the folders that the walk has come through.
    """
    folders, files = list_folder(folder)
    yield from (prefix + name for name in files)
    if folders:
        above |= {identity(folder)}
    for name in folders:
        if identity(folder / name) not in above:
            yield from files_below(folder / name, f"{prefix}{name}/", above)


def identity(folder: Path) -> tuple[int, int]:
    """Device and number of a folder, by which a link back to it is known."""
    status = folder.stat()
    return status.st_dev, status.st_ino
