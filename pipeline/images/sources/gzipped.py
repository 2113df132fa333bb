"""One gzipped tar of class folders, as ImageNet with blurred faces is distributed."""

import gzip
import tarfile
from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from pathlib import Path, PurePosixPath

from pipeline.base.errors import UserError
from pipeline.images.formats import is_hidden, is_image
from pipeline.images.sources.base import (
    Item,
    Source,
    Stretch,
    check_beside_classes,
    check_classes,
)
from pipeline.images.sources.packagings import Location
from pipeline.images.sources.tars import ignore, members, read, reading
from pipeline.images.walk import Ignored

# Limits of the memory
MOST_IMAGES = 256  # of a stretch whose bytes are in memory
MOST_BYTES = 32 * 2**20  # likewise
MOST_MEMBER = 10**9  # bytes; no image file is as large
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
    place, source.ignored = source.place, Ignored()
    counts: Counter[PurePosixPath] = Counter()  # images by folder
    with (
        reading(str(place), "gzipped tar"),
        gzip.open(place) as unpacked,
        tarfile.open(fileobj=unpacked, mode="r|", bufsize=BUFFER) as archive,
    ):
        # images with their bytes, hidden files and folders aside
        for member in members(archive, str(place)):
            path = PurePosixPath(member.name)
            check_size(member, place)
            if any(map(is_hidden, path.parts)):
                if not member.isdir():
                    source.ignored.add(member.name, b"")
            elif member.isdir():
                counts.update({path: 0} if path.name else {})  # "./" is the archive itself
            elif is_image(member.name):
                counts[class_folder(path, counts, place)] += 1
                yield Item(f"{path.parent.name}/{path.name}", read(archive, member), member.size)
            else:
                check_beside_classes(place, [member.name])
                ignore(source.ignored, archive, member)
        while unpacked.read(BUFFER):  # gzip compares its checksum at the very end
            pass
    # folders that lie beside those with images are classes too
    tops = {folder.parent for folder, count in counts.items() if count}
    check_classes(
        place, {folder.name: counts[folder] for folder in counts if folder.parent in tops}
    )


def check_size(member: tarfile.TarInfo, place: Path) -> None:
    """Raise UserError for a member that would fill the memory."""
    if member.size > MOST_MEMBER:
        raise UserError(
            f"{place} holds the member {member.name!r} of {member.size / 1e9:.1f} GB, which is not "
            "an image: use the original archive"
        )


def class_folder(path: PurePosixPath, counts: Counter[PurePosixPath], place: Path) -> PurePosixPath:
    """The folder of an image, which its class is named for.

    `counts` has the folders of the images so far. Raises UserError if the image is in none, in
    the archive's top folder, or if the folder does not lie beside those so far.
    """
    # Named by its folder
    folder = path.parent
    if folder.name in ("", place.name.partition(".")[0]):
        check_beside_classes(place, [str(path)])
    # Side by side only
    if not counts[folder]:
        elsewhere = next((f for f in counts if counts[f] and f.parent != folder.parent), None)
        if elsewhere:
            raise UserError(
                f"{place} holds images in {elsewhere} and in {folder}, which do not lie side by "
                "side: pack nothing but one tree of class folders"
            )
    return folder


def cut(items: Iterable[Item]) -> Iterator[Stretch]:
    """Items that carry their bytes, in stretches that need little memory."""
    # Limited by bytes
    part: list[Item] = []
    num_bytes = num_parts = 0
    for item in items:
        if part and (len(part) == MOST_IMAGES or num_bytes + item.size > MOST_BYTES):
            yield Stretch(f"part {num_parts}", part)
            part, num_bytes, num_parts = [], 0, num_parts + 1
        part.append(item)
        num_bytes += item.size
    # The last part
    yield Stretch(f"part {num_parts}", part)
