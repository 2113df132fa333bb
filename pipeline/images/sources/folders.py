"""A tree of class folders: train/, train_blurred/, Kaggle's ILSVRC/Data/CLS-LOC/train."""

import os
from collections.abc import Iterator
from pathlib import Path

from pipeline.images.sources.base import (
    Item,
    Source,
    Span,
    Stretch,
    check_classes,
    check_stray,
    is_image,
)
from pipeline.images.sources.packagings import Location


def open_at(location: Location) -> Source:
    """The image set at a location."""
    return open_folders(location.paths[0])


def open_folders(place: Path) -> Source:
    """The image set in the class folders of `place`; hidden folders are not classes.

    Raises UserError if an image lies beside the folders, or a class has none.
    """
    folders, files = list_folder(place)
    check_stray(place, files)
    counts, ignored = {}, len(files)
    for folder in folders:
        names = list_folder(place / folder)[1]
        counts[folder] = sum(map(is_image, names))
        ignored += len(names) - counts[folder]
    classes = check_classes(place, counts)

    def stretches() -> Iterator[Stretch]:
        for name in classes:
            yield Stretch(name, list_class(place, name))

    return Source("folders", place, classes, sum(counts.values()), stretches, True, ignored)


def list_class(place: Path, folder: str) -> list[Item]:
    """The images of one class, sorted by name."""
    names = sorted(filter(is_image, list_folder(place / folder)[1]))
    return [Item(f"{folder}/{name}", Span(f"{place}/{folder}/{name}")) for name in names]


def list_folder(place: Path) -> tuple[list[str], list[str]]:
    """Names of the folders that are not hidden, and of everything else, dead links too."""
    with os.scandir(place) as scan:
        entries = [(entry.name, entry.is_dir()) for entry in scan]
    folders = [name for name, is_folder in entries if is_folder and not name.startswith(".")]
    return folders, [name for name, is_folder in entries if not is_folder]
