"""One gzipped tar of class folders, as ImageNet with blurred faces is distributed."""

import gzip
import tarfile
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

from pipeline.base.errors import UserError
from pipeline.images.sources.base import MOST_MEMBER, Item, Source, Stretch
from pipeline.images.sources.class_folders import ClassFolders
from pipeline.images.sources.packagings import Location
from pipeline.images.sources.tars import members, read, read_head, reading

# Limits of the memory
MOST_IMAGES = 256  # of a stretch whose bytes are in memory
MOST_BYTES = 32 * 2**20  # likewise
BUFFER = 2**20  # bytes


def open_at(location: Location) -> Source:
    """The image set at a location."""
    return open_gzipped(location.paths[0])


def open_gzipped(place: Path) -> Source:
    """The image set in the class folders of a gzipped tar, which is only ever read forwards.

    Opening it reads as far as the first image. Raises UserError, in the opening or when the
    reading comes upon it, for a damaged or incomplete archive, for members that do not belong in
    one, for an image outside of class folders, and at the end for class folders that are empty.
    """
    # Listed only while reading
    source = Source(
        kind="tar.gz",
        place=place,
        classes=None,
        num_images=None,
        stretches=lambda: cut(stream_gzipped(source)),
        ordered=False,
    )
    # The first image shows it
    with closing(stream_gzipped(source)) as items:
        next(items)
    return source


def stream_gzipped(source: Source) -> Generator[Item, None, None]:
    """All images of a gzipped tar with their bytes, in its order; counts `source.ignored`."""
    # Counts for the checks
    folders = ClassFolders(source.place)
    source.ignored = folders.ignored
    # Images with their bytes
    with reading(str(source.place), "gzipped tar"):
        for archive, member in stream_members(source.place):
            head = partial(read_head, archive, member)
            if name := folders.image(member.name, member.isdir(), head):
                yield Item(name, read(archive, member), member.size)
    folders.classes()


def stream_members(place: Path) -> Generator[tuple[tarfile.TarFile, tarfile.TarInfo], None, None]:
    """The members of a gzipped tar in its order, each with the archive, which is at its content.

    Use it inside `reading`, which names the archive if it is damaged or incomplete. Raises
    UserError for a member that would fill the memory.
    """
    with (
        gzip.open(place) as unpacked,
        tarfile.open(fileobj=unpacked, mode="r|", bufsize=BUFFER) as archive,
    ):
        for member in members(archive, str(place)):
            check_size(member, place)
            yield archive, member
        while unpacked.read(BUFFER):  # gzip compares its checksum at the very end
            pass


def check_size(member: tarfile.TarInfo, place: Path) -> None:
    """Raise UserError for a member that would fill the memory."""
    if member.size > MOST_MEMBER:
        raise UserError(
            f"{place} holds the member {member.name!r} of {member.size / 1e9:.1f} GB, which is not "
            "an image: use the original archive"
        )


def cut(items: Iterable[Item], prefix: str = "") -> Iterator[Stretch]:
    """Items that carry their bytes, in stretches that need little memory, named `prefix`part 0 …"""
    # Limited by bytes
    part: list[Item] = []
    num_bytes = num_parts = 0
    for item in items:
        if part and (len(part) == MOST_IMAGES or num_bytes + item.size > MOST_BYTES):
            yield Stretch(f"{prefix}part {num_parts}", part)
            part, num_bytes, num_parts = [], 0, num_parts + 1
        part.append(item)
        num_bytes += item.size
    # The last part
    yield Stretch(f"{prefix}part {num_parts}", part)
