"""Image sets in tars with all classes mixed: one gzipped tar of class folders, or WebDataset's.

WebDataset keeps one sample in neighbouring members with the same key, a name up to the first dot
of its last part: here KEY.jpg (or another image) and KEY.cls, its label as ASCII digits.
"""

import gzip
import tarfile
from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from pathlib import Path, PurePosixPath

from pipeline.base.errors import UserError
from pipeline.images.sources.base import (
    IMAGE_SUFFIXES,
    Item,
    Source,
    Span,
    Stretch,
    check_classes,
    check_stray,
    is_image,
)
from pipeline.images.sources.synsets import synset_of
from pipeline.images.sources.tars import members, reading

MOST_IMAGES = 256  # of a stretch whose bytes are in memory
MOST_BYTES = 32 * 2**20  # likewise
MOST_MEMBER = 10**9  # bytes; no image file is as large
BUFFER = 2**20  # bytes
LABEL_BYTES = 16  # digits and white space of a .cls file, and more than enough


# --- gzipped tar of class folders --------------------------------------------------------------


def open_gzipped(place: Path) -> Source:
    """The image set in the class folders of a gzipped tar, which is only ever read forwards.

    Opening it reads as far as the first image. Raises UserError, in the opening or where the
    reading comes upon it, for a damaged or incomplete archive, for members that do not belong in
    one, for an image outside of class folders, and at the end for class folders that are empty.
    """
    source = Source(
        kind="tar.gz",
        place=place,
        classes=None,
        num_images=None,
        stretches=lambda: cut(stream_gzipped(source)),
        ordered=False,
    )
    with closing(stream_gzipped(source)) as items:
        next(items)
    return source


def stream_gzipped(source: Source) -> Generator[Item, None, None]:
    """All images of a gzipped tar with their bytes, in its order; counts `source.ignored`."""
    place, source.ignored = source.place, 0
    counts: Counter[PurePosixPath] = Counter()  # images by folder
    with (
        reading(str(place), "gzipped tar"),
        gzip.open(place) as unpacked,
        tarfile.open(fileobj=unpacked, mode="r|", bufsize=BUFFER) as archive,
    ):
        for member in members(archive, str(place)):
            path = PurePosixPath(member.name)
            check_size(member, place)
            if any(part.startswith(".") for part in path.parts):
                source.ignored += not member.isdir()
            elif member.isdir():
                counts.update({path: 0} if path.name else {})  # "./" is the archive itself
            elif is_image(member.name):
                counts[class_folder(path, counts, place)] += 1
                yield Item(f"{path.parent.name}/{path.name}", read(archive, member), member.size)
            else:
                source.ignored += 1
        while unpacked.read(BUFFER):  # gzip compares its checksum at the very end
            pass
    tops = {folder.parent for folder, count in counts.items() if count}
    check_classes(
        place, {folder.name: counts[folder] for folder in counts if folder.parent in tops}
    )


def check_size(member: tarfile.TarInfo, place: Path) -> None:
    """Raise UserError for a member that would fill the memory."""
    if member.size > MOST_MEMBER:
        raise UserError(
            f"{place} holds the member {member.name!r} of {member.size / 1e9:.1f} GB, which is no "
            "image: use the original archive"
        )


def class_folder(path: PurePosixPath, counts: Counter[PurePosixPath], place: Path) -> PurePosixPath:
    """The folder of an image, which its class is named for.

    `counts` has the folders of the images so far. Raises UserError where the image is in none, in
    the archive's own top folder, or where the folder does not lie beside those so far.
    """
    folder = path.parent
    if folder.name in ("", place.name.partition(".")[0]):
        check_stray(place, [str(path)])
    if not counts[folder]:
        other = next((f for f in counts if counts[f] and f.parent != folder.parent), None)
        if other:
            raise UserError(
                f"{place} holds images in {other} and in {folder}, which do not lie side by side: "
                "pack nothing but one tree of class folders"
            )
    return folder


def read(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """The bytes of a file in a tar; raises tarfile.ReadError where they end early."""
    stream = archive.extractfile(member)
    assert stream is not None
    return stream.read()


def cut(items: Iterable[Item]) -> Iterator[Stretch]:
    """Items that carry their bytes, in stretches that need little memory."""
    part: list[Item] = []
    num_bytes = number = 0
    for item in items:
        if part and (len(part) == MOST_IMAGES or num_bytes + item.size > MOST_BYTES):
            yield Stretch(f"part {number}", part)
            part, num_bytes, number = [], 0, number + 1
        part.append(item)
        num_bytes += item.size
    yield Stretch(f"part {number}", part)


# --- WebDataset --------------------------------------------------------------------------------


def open_webdataset(place: Path, shards: list[Path]) -> Source:
    """The image set in WebDataset's `shards`, tars without compression; `place` is their folder.

    Labels count through the sorted synsets. Opening it reads every header and label. Raises
    UserError for damaged shards, for images without a label and labels without an image, for a key
    with several images, and for labels that are not in 0…999 or disagree with the key.
    """
    shards = sorted(shards)
    counts: Counter[str] = Counter()
    for shard in shards:
        counts.update(item.name.partition("/")[0] for item in list_shard(shard))
    return Source(
        kind="webdataset",
        place=place,
        classes=check_classes(place, counts),
        num_images=counts.total(),
        stretches=lambda: (Stretch(shard.name, list_shard(shard)) for shard in shards),
        ordered=False,
    )


def list_shard(shard: Path) -> list[Item]:
    """The images of one shard, in its order; members other than images and labels do not count."""
    images: dict[str, tuple[str, Span]] = {}  # key -> extension, place
    labels: dict[str, int] = {}
    with reading(str(shard)), tarfile.open(shard, "r:") as archive:
        for member in members(archive, str(shard)):
            key, extension = split_key(member.name)
            if extension.lower() == "cls":
                labels[key] = read_label(archive, member, shard)
            elif f".{extension.lower()}" in IMAGE_SUFFIXES and not member.isdir():
                if key in images:
                    raise UserError(
                        f"{shard} holds several images with the key {key}: keep one of them"
                    )
                images[key] = extension, Span(str(shard), member.offset_data, member.size)
    check_pairs(shard, images.keys(), labels.keys())
    return [
        name_item(key, extension, span, labels[key]) for key, (extension, span) in images.items()
    ]


def split_key(name: str) -> tuple[str, str]:
    """Key and extension of a member: the first dot of the name's last part divides them."""
    folder, slash, file = name.rpartition("/")
    stem, _, extension = file.partition(".")
    return folder + slash + stem, extension


def read_label(archive: tarfile.TarFile, member: tarfile.TarInfo, shard: Path) -> int:
    """The number in a .cls file; raises UserError where there is none."""
    text = read(archive, member).strip() if 0 < member.size <= LABEL_BYTES else b""
    if not text.removeprefix(b"-").isdigit():
        raise UserError(
            f"{shard}: {member.name} does not hold a label as ASCII digits: make the shard again"
        )
    return int(text)


def check_pairs(shard: Path, images: Iterable[str], labels: Iterable[str]) -> None:
    """Raise UserError where a key has an image or a label but not both."""
    images, labels = set(images), set(labels)
    if images != labels:
        key = min(images ^ labels)
        has, lacks = ("an image", "label (.cls)") if key in images else ("a label (.cls)", "image")
        raise UserError(f"{shard}: the key {key} has {has} and no {lacks}: make the shard again")


def name_item(key: str, extension: str, span: Span, label: int) -> Item:
    """The image of one key under the class that its label stands for."""
    stem = PurePosixPath(key).name
    synset = synset_of(label, stem, f"{span.path}: the key {key}")
    return Item(f"{synset}/{stem}.{extension}", span, span.size)
