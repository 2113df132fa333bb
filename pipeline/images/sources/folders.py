"""A tree of class folders: train/, train_blurred/, Kaggle's ILSVRC/Data/CLS-LOC/train.

As torchvision's ImageFolder has it, an image at any depth below a class folder is of that class:
Tiny-ImageNet has its images one folder deeper. A folder that only holds several others may be a
group of classes instead (the letters of Places), and is refused.
"""

from collections.abc import Iterator
from pathlib import Path

from pipeline.base.errors import UserError
from pipeline.images.sources.base import (
    Item,
    Source,
    Span,
    Stretch,
    check_beside_classes,
    check_classes,
)
from pipeline.images.sources.listing import size
from pipeline.images.sources.packagings import Location
from pipeline.images.walk import NAMED, Ignored, list_folder, listed, walk


def open_at(location: Location) -> Source:
    """The image set at a location."""
    return open_folders(location.paths[0])


def open_folders(place: Path) -> Source:
    """The image set in the class folders of `place`; hidden folders are not classes.

    Raises UserError if an image lies beside the folders, a class has none, or a folder may be a
    group of classes.
    """
    # Classes at the top
    folders, files = list_folder(place)
    check_beside_classes(place, files)
    counts, ignored = {}, Ignored()
    ignored.add_files(place, sorted(files))
    # Images of each class
    for folder in sorted(folders):
        images, other_files = walk(place / folder)
        check_one_class(place, folder, images)
        counts[folder] = len(images)
        ignored.add_files(place, [f"{folder}/{name}" for name in other_files])
    # Complete classes
    classes = check_classes(place, counts)

    def stretches() -> Iterator[Stretch]:
        for name in classes:
            yield Stretch(name, list_class(place, name))

    return Source("folders", place, classes, sum(counts.values()), stretches, True, ignored)


def check_one_class(place: Path, folder: str, images: list[str]) -> None:
    """Raise UserError if a folder holds no images itself but several folders of them."""
    parts = sorted({name.partition("/")[0] for name in images if "/" in name})
    if len(parts) > 1 and all("/" in name for name in images):
        raise UserError(
            f"{place / folder} holds no images itself but {len(parts)} folders of them "
            f"({listed(parts[:NAMED], len(parts))}), which may be classes: move them up into "
            f"{place} if they are, or their images into {place / folder} if that is one class"
        )


def list_class(place: Path, folder: str) -> list[Item]:
    """The images of one class, sorted by name."""
    names = walk(place / folder)[0]
    files = [(f"{folder}/{name}", f"{place}/{folder}/{name}") for name in names]
    return [Item(name, Span(file), size(file)) for name, file in files]
