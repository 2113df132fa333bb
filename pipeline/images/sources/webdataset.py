"""Image sets in WebDataset's shards: tars without compression with all classes mixed.

WebDataset keeps one sample in neighbouring members with the same key, a name up to the first dot
of its last part: here KEY.jpg (or another image) and KEY.cls, its label as ASCII digits.
"""

import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipeline.base.errors import UserError
from pipeline.images.formats import IMAGE_SUFFIXES, begins_as_image
from pipeline.images.sources.base import (
    Item,
    Source,
    Span,
    Stretch,
    check_classes,
)
from pipeline.images.sources.class_names import ClassNames, name_classes
from pipeline.images.sources.packagings import Location
from pipeline.images.sources.synsets import synset_of
from pipeline.images.sources.tars import ignore, members, read, read_head, reading
from pipeline.images.walk import Ignored

LABEL_BYTES = 16  # digits and white space of a .cls file, and more than enough


@dataclass(frozen=True)
class Labelled:
    """One image of a shard."""

    # Name and label
    file: str  # name without folders
    label: int
    # Place in the shard
    span: Span


def open_at(location: Location) -> Source:
    """The image set at a location."""
    return open_webdataset(location.root, location.paths)


def open_webdataset(place: Path, shards: list[Path]) -> Source:
    """The image set in WebDataset's `shards`, tars without compression; `place` is their folder.

    Labels count through the sorted synsets if keys begin with them or there are 1,000, and are
    named class0000 … otherwise. Opening it reads every header and label. Raises UserError for
    damaged shards, for images without a label and labels without an image, for a key with several
    images, and for labels that are not in 0…999 or disagree with the key.
    """
    # Labels of all images, and the name of one of each
    shards = sorted(shards)
    labels: Counter[int | None] = Counter()
    ignored = Ignored()
    files: dict[int | None, str] = {}
    for shard in shards:
        for image in list_shard(shard, ignored):
            labels[image.label] += 1
            files.setdefault(image.label, image.file)
    names = name_classes(labels, files.items())
    counts = {names.of(label, "", str(place)): num for label, num in labels.items()}

    def stretches() -> Iterator[Stretch]:
        for shard in shards:
            yield Stretch(shard.name, [name_item(image, names) for image in list_shard(shard)])

    # Images in any order
    return Source(
        kind="webdataset",
        place=place,
        classes=check_classes(place, counts),
        num_images=labels.total(),
        stretches=stretches,
        ordered=False,
        ignored=ignored,
    )


def list_shard(shard: Path, ignored: Ignored | None = None) -> list[Labelled]:
    """The images of one shard, in its order.

    Of the other members, those that hold images too, such as masks, are counted in `ignored`.
    """
    images: dict[str, tuple[str, Span]] = {}  # key -> extension, place
    labels: dict[str, int] = {}
    # images and labels by their key
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
            elif ignored is not None and begins_as_image(read_head(archive, member)):
                ignore(ignored, archive, member)
    check_pairs(shard, images.keys(), labels.keys())

    # Image with its label
    return [
        labelled(key, extension, span, labels[key]) for key, (extension, span) in images.items()
    ]


def split_key(name: str) -> tuple[str, str]:
    """Key and extension of a member: the first dot of the name's last part divides them."""
    folder, slash, file = name.rpartition("/")
    stem, _, extension = file.partition(".")
    return folder + slash + stem, extension


def read_label(archive: tarfile.TarFile, member: tarfile.TarInfo, shard: Path) -> int:
    """The number in a .cls file; raises UserError if there is none."""
    text = read(archive, member).strip() if 0 < member.size <= LABEL_BYTES else b""
    if not text.removeprefix(b"-").isdigit():
        raise UserError(
            f"{shard}: {member.name} does not hold a label as ASCII digits: make the shard again"
        )
    return int(text)


def check_pairs(shard: Path, images: Iterable[str], labels: Iterable[str]) -> None:
    """Raise UserError if a key has an image or a label but not both."""
    images, labels = set(images), set(labels)
    if images != labels:
        key = min(images ^ labels)
        has, lacks = ("an image", "label (.cls)") if key in images else ("a label (.cls)", "image")
        raise UserError(f"{shard}: the key {key} has {has} and no {lacks}: make the shard again")


def labelled(key: str, extension: str, span: Span, label: int) -> Labelled:
    """The image of one key; raises UserError if it is named for another synset than its label's."""
    stem = PurePosixPath(key).name
    synset_of(label, stem, f"{span.path}: the key {key}")
    return Labelled(f"{stem}.{extension}", label, span)


def name_item(image: Labelled, names: ClassNames) -> Item:
    """An image under the class that its label stands for."""
    name = names.of(image.label, image.file, f"{image.span.path}: {image.file}")
    return Item(f"{name}/{image.file}", image.span, image.span.size)
