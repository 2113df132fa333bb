"""Images that the dataset_tool of StyleGAN or EDM prepared: a zip, or the same unpacked.

Folders count the images, 00000/img00000000.png, all of one size. dataset.json has their labels,
{"labels": [["00000/img00000000.png", 3], …]}, or null if there are no classes.
"""

import io
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from pipeline.base.errors import UserError
from pipeline.config.image_sets import NO_CLASS
from pipeline.images.formats import FORMATS, is_hidden, is_image
from pipeline.images.sources import zips
from pipeline.images.sources.base import (
    ABOUT_EDM,
    Item,
    Source,
    Span,
    Where,
    check_classes,
    cut_evenly,
    no_images,
)
from pipeline.images.sources.class_names import ClassNames, name_classes
from pipeline.images.sources.listing import size
from pipeline.images.sources.packagings import Location
from pipeline.images.sources.reading import read_all
from pipeline.images.walk import NAMED, Ignored, listed, walk

RECIPE = "as_is"


def open_at(location: Location) -> Source:
    """The image set at a location."""
    return open_edm(location.paths[0])


def open_edm(place: Path) -> Source:
    """The image set in a zip or folder with dataset.json; opening it reads names and labels.

    Raises UserError if the zip is damaged, there are no images, labels and images are not of the
    same names, or a label is not a number from 0 on.
    """
    # Images and their labels
    labels, ignored = read_labels(place), Ignored()
    names = [name for name, _, _ in files(place, ignored)]
    if not names:
        raise no_images(place)
    check_names(place, names, labels)
    classes = None if labels is None else name_classes(Counter(labels.values()), labels_of(labels))
    counts = Counter(class_of(name, labels, classes, place) for name in names)

    # Named by their classes
    def items() -> Iterator[Item]:
        for name, where, num_bytes in files(place, Ignored()):
            yield Item(f"{class_of(name, labels, classes, place)}/{name}", where, num_bytes)

    return Source(
        kind="edm",
        place=place,
        classes=check_classes(place, counts),
        num_images=len(names),
        stretches=lambda: cut_evenly(items()),
        ordered=False,
        ignored=ignored,
        made=(side(place, next(items())), RECIPE),
    )


def has_labels(place: Path) -> bool:
    """Whether dataset.json has labels; raises UserError if it cannot be read."""
    return read_labels(place) is not None


def files(place: Path, ignored: Ignored) -> Iterator[tuple[str, Where, int]]:
    """Name, place and bytes of each image; others are counted in `ignored`."""
    # Unpacked
    if place.is_dir():
        images, other_files = walk(place)
        ignored.add_files(place, [name for name in other_files if name != ABOUT_EDM])
        for name in images:
            yield name, Span(f"{place}/{name}"), size(f"{place}/{name}")
        return

    # In a zip
    for name, member in zips.list_zip(place):
        if is_image(name):
            yield name, member, member.size
        elif not name.endswith("/") and name != ABOUT_EDM:
            ignored.add(name, b"" if is_hidden(name) else zips.read_head(member))


# --- labels --------------------------------------------------------------------------------------


def read_labels(place: Path) -> dict[str, int] | None:
    """The label of each image by its name; None if there are none.

    Raises UserError if dataset.json is not what the tool writes.
    """
    # Its JSON
    where = f"{ABOUT_EDM} of {place}"
    try:
        about = json.loads(about_bytes(place))
        pairs = about.get("labels")
        labels = pairs and dict(pairs)
    except (ValueError, TypeError, AttributeError) as error:
        raise bad_about(where) from error

    # Whole numbers
    if labels and len(labels) != len(pairs):
        raise UserError(f"{where} has two labels for an image: make it again with dataset_tool")
    if labels and not all(type(label) is int for label in labels.values()):
        raise bad_about(where)
    return labels or None


def about_bytes(place: Path) -> bytes:
    """The bytes of dataset.json; those of an empty one if there is none."""
    if place.is_dir():
        file = place / ABOUT_EDM
        return file.read_bytes() if file.exists() else b"{}"
    members = [member for name, member in zips.list_zip(place) if name == ABOUT_EDM]
    content: Any = zips.read_member(members[0]) if members else b"{}"
    if isinstance(content, OSError):
        raise zips.damaged(place, f"{ABOUT_EDM}: {content}")
    return bytes(content)


def bad_about(where: str) -> UserError:
    """The error for a dataset.json of another form."""
    return UserError(
        f'{where} does not hold {{"labels": [["NAME", NUMBER], …]}} or {{"labels": null}}: make it '
        "again with dataset_tool"
    )


def check_names(place: Path, names: list[str], labels: dict[str, int] | None) -> None:
    """Raise UserError unless the labels are those of the images, each once."""
    if labels is None:
        return
    unlabelled = [name for name in names if name not in labels]
    missing = sorted(labels.keys() - set(names))
    for what, which in (
        ("images without a label", unlabelled),
        ("labels without an image", missing),
    ):
        if which:
            raise UserError(
                f"{place} holds {len(which)} {what} in {ABOUT_EDM} "
                f"({listed(which[:NAMED], len(which))}): get it again, or make it again with "
                "dataset_tool"
            )


def labels_of(labels: dict[str, int]) -> Iterator[tuple[int | None, str]]:
    """Label and file name of each image."""
    return ((label, name.rpartition("/")[2]) for name, label in labels.items())


def class_of(
    name: str, labels: dict[str, int] | None, classes: ClassNames | None, place: Path
) -> str:
    """The class of an image."""
    if labels is None or classes is None:
        return NO_CLASS
    return classes.of(labels[name], name.rpartition("/")[2], f"{place}: {name}")


def side(place: Path, first: Item) -> int:
    """The width and height of the first image, px; raises UserError if it is not a square."""
    # As its file says
    (content,) = read_all([first])
    try:
        if isinstance(content, OSError):
            raise content
        assert isinstance(content, bytes)
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            width, height = image.size
    except OSError as error:
        raise UserError(
            f"{place} holds {first.name}, which cannot be read ({error}): get it again"
        ) from error

    # Square as all of them
    if width != height:
        raise UserError(
            f"{place} holds {first.name} of {width} x {height} px, which is not a square: make it "
            "again with dataset_tool, or give the original images in class folders"
        )
    return width
