"""The layout of a folder or zip whose name alone does not tell it."""

import os
from collections import Counter
from pathlib import Path

from pipeline.base.errors import UserError
from pipeline.images.formats import is_image
from pipeline.images.sources import zips
from pipeline.images.sources.base import ABOUT_EDM
from pipeline.images.walk import list_folder

TAIL = 2**16  # bytes: the last entries of a zip's directory, where EDM's tool puts dataset.json


def layout_of(place: Path) -> str:
    """folders, edm, adm or flat for a folder; edm or folders.zip for a zip. Reads names alone.

    A folder of images without folders is `adm` if its names look like classes, else `flat`.
    """
    # Zips
    if place.suffix == ".zip":
        return "edm" if zip_holds_about(place) else "folders.zip"

    # Folders
    if not place.is_dir():
        return ""
    if (place / ABOUT_EDM).is_file():
        return "edm"
    if has_folder(place):
        return "folders"
    images = [name for name in list_folder(place)[1] if is_image(name)]
    if not images:
        return "folders"
    return "adm" if name_classes(images) else "flat"


def has_folder(place: Path) -> bool:
    """Whether a folder holds another that is not hidden; stops at the first."""
    with os.scandir(place) as scan:
        return any(entry.is_dir() and not entry.name.startswith(".") for entry in scan)


def name_classes(names: list[str]) -> bool:
    """Whether names begin with their classes: before "_", several, of two images or more each.

    Each class has as many on average, so that names that begin with a number or date do not count.
    """
    counts = Counter(name.partition("_")[0] for name in names if "_" in name[1:])
    return counts.total() == len(names) and 1 < len(counts) <= len(names) / 2


def zip_holds_about(place: Path) -> bool:
    """Whether a zip holds EDM's dataset.json, at its end as a rule; false of a damaged one."""
    # The last bytes first
    with place.open("rb") as stream:
        stream.seek(max(0, place.stat().st_size - TAIL))
        if ABOUT_EDM.encode() in stream.read():
            return True

    # All names
    try:
        return any(name == ABOUT_EDM for name, _ in zips.list_zip(place))
    except UserError:
        return False
