"""The common part of all sources of images: images, stretches of them, and their checks."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np

from pipeline.base.errors import UserError
from pipeline.data.pack import Listing
from pipeline.images.formats import IMAGE_SUFFIXES, is_image
from pipeline.images.walk import Ignored

ABOUT_EDM = "dataset.json"  # has the labels of a set that EDM or StyleGAN prepared
BATCH = 32  # images that a worker decodes at a time
MOST_MEMBER = 10**9  # bytes of a file in an archive; no image file is as large
MOST_ITEMS = 256  # of a stretch that is not a class or a shard


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes of a file that hold one image file."""

    # Which bytes
    path: str
    offset: int = 0  # bytes
    size: int = -1  # bytes; -1: to the end of the file


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a Parquet file."""

    # Which row
    path: str
    group: int  # row group
    row: int  # within its group


@dataclass(frozen=True, slots=True)
class Member:
    """A file in a zip, which may be compressed."""

    # Which bytes
    path: str
    header: int  # where its local header begins, bytes
    packed: int  # bytes in the zip
    # How they are unpacked
    method: int  # of compression: 0 none, 8 deflate
    size: int  # bytes of the file
    crc: int  # its CRC-32


# Where an image is: in a file, in a table, or read already (a file's bytes; pixels (H,W,3) uint8).
Where = Span | Row | Member | bytes | np.ndarray


@dataclass(frozen=True, slots=True)
class Item:
    """One image: light and picklable, since it is sent to the process that decodes it."""

    # Its name in the pack
    name: str  # <class>/<file>: the rows of a pack are sorted by (class, file)
    # Where its bytes are
    where: Where
    size: int = -1  # bytes of the image file if known, to notice a changed one


@dataclass(frozen=True)
class Stretch:
    """Images that are finished together: a killed run does not have to do them again."""

    name: str  # unique in its source, for example a class or a shard
    items: list[Item]


@dataclass
class Source:
    """An image set as it lies on disk; `stretches` reads it once, in its own order."""

    # Kind and place
    kind: str  # layout, a choice of data.layout
    place: Path  # for messages
    # What it holds
    classes: list[str] | None  # sorted, as labels count them; None: known after the last stretch
    num_images: int | None  # None: known after the last stretch
    # How it is read
    stretches: Callable[[], Iterator[Stretch]]
    ordered: bool  # whether the stretches come in the pack's order
    ignored: Ignored = field(default_factory=Ignored)  # complete after the last stretch
    batch: int = BATCH  # images that a worker takes at a time
    # if the pixels were made by a recipe already, which the configuration must then name
    made: tuple[int, str] | None = None  # (resolution, recipe)
    listing: Listing | None = None  # of the files; None: drawn by this project


def check_beside_classes(place: Path, names: list[str]) -> None:
    """Raise UserError if files beside the classes say that there are no classes.

    An image there has none, and beside EDM's dataset.json the folders only count images.
    """
    # Images outside all classes
    stray = [name for name in names if is_image(name)]
    if stray:
        raise UserError(
            f"{place} holds images that belong to no class ({', '.join(stray[:3])}): "
            "put each into the folder of its class, or all of them into one folder there, which "
            "is then the only class"
        )
    # Prepared by EDM
    about = [name for name in names if name.rpartition("/")[2] == ABOUT_EDM]
    if about:
        raise UserError(
            f"{place} holds {about[0]} of EDM's dataset_tool: its folders count images and are "
            "not classes: give it as a zip or folder (data.layout=edm data.recipe=as_is), or give "
            "the original images in class folders"
        )


def no_images(place: Path) -> UserError:
    """The error for an image set without any image."""
    return UserError(
        f"{place} holds no images: class folders (or class tars) with "
        f"{'|'.join(IMAGE_SUFFIXES)} files are expected there"
    )


def check_classes(place: Path, counts: dict[str, int]) -> list[str]:
    """The sorted classes of {class: number of images}.

    Raises UserError if there are no images at all, or none of a class.
    """
    # classes without images: all, or some
    empty = sorted(name for name, count in counts.items() if not count)
    if len(empty) == len(counts):
        raise no_images(place)
    if empty:
        raise UserError(
            f"{len(empty)} classes of {place} are empty ({', '.join(empty[:10])}): "
            "complete them or take them away"
        )
    return sorted(counts)


def cut_evenly(items: Iterable[Item], most: int = MOST_ITEMS) -> Iterator[Stretch]:
    """Stretches of `most` items, which carry no bytes, named by their place."""
    remaining, number = iter(items), 0
    while part := list(islice(remaining, most)):
        yield Stretch(f"part {number}", part)
        number += 1
