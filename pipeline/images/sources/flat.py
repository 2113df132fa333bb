"""A folder of images without class folders: with classes in the names, as ADM has it, or without.

ADM (guided-diffusion) takes for the class what stands before the first "_" of a file's name, and
reads images at any depth. A set without classes has one, which the network must not learn.
"""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from pipeline.base.errors import UserError
from pipeline.config.image_sets import NO_CLASS
from pipeline.images.sources.base import Item, Source, Span, Stretch, cut_evenly, no_images
from pipeline.images.sources.listing import size
from pipeline.images.sources.packagings import Location
from pipeline.images.walk import NAMED, Ignored, listed, walk


def open_at(location: Location) -> Source:
    """The image set at a location."""
    return open_flat(location.paths[0], location.layout)


def open_flat(place: Path, kind: str) -> Source:
    """The images at any depth of a folder; `kind`: adm, with classes in their names, or flat.

    Raises UserError if there are none, or a name does not say its class.
    """
    # Names by class
    names, other_files = walk(place)
    if not names:
        raise no_images(place)
    by_class = classes_of(place, names) if kind == "adm" else {NO_CLASS: names}
    ignored = Ignored()
    ignored.add_files(place, other_files)

    def stretches() -> Iterator[Stretch]:
        for folder in sorted(by_class):
            files = ((f"{folder}/{name}", f"{place}/{name}") for name in by_class[folder])
            items = (Item(name, Span(file), size(file)) for name, file in files)
            for part in cut_evenly(items):
                yield Stretch(f"{folder} {part.name}", part.items)

    return Source(kind, place, sorted(by_class), len(names), stretches, True, ignored)


def classes_of(place: Path, names: list[str]) -> dict[str, list[str]]:
    """The names by their class, each sorted; raises UserError if one says none."""
    by_class: dict[str, list[str]] = defaultdict(list)
    unnamed: list[str] = []
    for name in names:
        first, dash, _ = name.rpartition("/")[2].partition("_")
        (by_class[first] if first and dash else unnamed).append(name)
    if unnamed:
        raise UserError(
            f"{len(unnamed)} images of {place} have no class before a _ in their names "
            f"({listed(unnamed[:NAMED], len(unnamed))}): name them class_name.png, or set "
            "data.layout=flat if the images have no classes"
        )
    return by_class
