"""A tree of class folders in a zip, or in a tar without compression: read in place."""

import tarfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from pipeline.images.sources import tars, zips
from pipeline.images.sources.base import Item, Source, Span, cut_evenly
from pipeline.images.sources.class_folders import ClassFolders
from pipeline.images.sources.packagings import Location


def open_at(location: Location) -> Source:
    """The image set at a location."""
    return open_archive(location.paths[0], location.layout)


def open_archive(place: Path, kind: str) -> Source:
    """The image set in an archive, `kind` folders.tar or folders.zip; opening lists its members.

    Raises UserError if the archive is damaged or incomplete, or holds members that do not belong
    in one, an image outside of class folders, or an empty class folder.
    """
    # One listing for the counts
    folders = ClassFolders(place)
    images = {"folders.tar": images_of_tar, "folders.zip": images_of_zip}[kind]
    num_images = sum(1 for _ in images(place, folders))

    # Another for each reading
    return Source(
        kind=kind,
        place=place,
        classes=folders.classes(),
        num_images=num_images,
        stretches=lambda: cut_evenly(images(place, ClassFolders(place))),
        ordered=False,
        ignored=folders.ignored,
    )


def images_of_tar(place: Path, folders: ClassFolders) -> Iterator[Item]:
    """The images of a tar in its order; all members are counted in `folders`."""
    with tars.reading(str(place)), tarfile.open(place, "r:") as archive:
        for member in tars.members(archive, str(place)):
            head = partial(tars.read_head, archive, member)
            if name := folders.image(member.name, member.isdir(), head):
                yield Item(name, Span(str(place), member.offset_data, member.size), member.size)


def images_of_zip(place: Path, folders: ClassFolders) -> Iterator[Item]:
    """The images of a zip in its order; all members are counted in `folders`."""
    for file, member in zips.list_zip(place):
        if name := folders.image(file, file.endswith("/"), partial(zips.read_head, member)):
            yield Item(name, member, member.size)
