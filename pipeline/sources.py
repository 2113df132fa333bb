"""What lies in the image folder: the classes and images of an image set, in the order of the pack.

An image set is a tree of class folders or ImageNet's own tar of class tars, which is read in place:
its index says at which byte each image begins, so that nothing is unpacked and every process can
open the tar itself.
"""

import os
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from pipeline import layout, shapes
from pipeline.errors import UserError
from pipeline.keys import MADE_SOURCES, Config

IMAGE_SUFFIXES = {
    ".jpeg",
    ".jpg",
    ".png",
    ".bmp",
    ".gif",
    ".ppm",
    ".tif",
    ".tiff",
    ".webp",
}
TRAIN_TAR = "ILSVRC2012_img_train.tar"
# Where an image set may lie in the image folder: folders hold class folders, tars class tars.
PLACES = {
    "train": ("train", "ILSVRC/Data/CLS-LOC/train", TRAIN_TAR),  # the second is Kaggle's
    "train_blurred": ("train_blurred",),
}


@dataclass(frozen=True, slots=True)
class ImageFile:
    """One image: light and picklable, since ImageNet has 1.28 million."""

    label: int
    name: str  # <class>/<file>
    offset: int = -1  # bytes from the start of the tar; -1: a file of its own
    size: int = -1  # bytes


@dataclass(frozen=True)
class ImageSet:
    """An image set; `images` are sorted by (class, file name), labels count through `classes`."""

    kind: str  # tree | tar
    place: Path  # the folder of class folders, or the tar
    classes: list[str]
    images: list[ImageFile]
    ignored: int  # files that are no images by their name


def list_images(config: Config, environment: Mapping[str, str] = os.environ) -> ImageSet:
    """The image set that data.source names; shapes are drawn first where they are missing.

    Raises UserError where the set is missing, lies there twice, holds no images or an empty
    class, cannot be read, or is a tar with members that do not belong in one.
    """
    place = find_place(config, environment)
    try:
        return list_tar(place) if place.suffix == ".tar" else list_tree(place)
    except OSError as error:
        raise UserError(
            f"cannot list the images of {place} ({error.strerror}: {error.filename}): "
            "make them readable"
        ) from error


def read_image(place: Path, image: ImageFile) -> bytes:
    """The bytes of one image file of the set at `place`; raises OSError where it is gone."""
    if image.offset < 0:
        return (place / image.name).read_bytes()
    with place.open("rb") as stream:
        stream.seek(image.offset)
        return stream.read(image.size)


def find_place(config: Config, environment: Mapping[str, str] = os.environ) -> Path:
    """The folder or the tar of the image set."""
    source = config.data.source
    if source in MADE_SOURCES:
        place = layout.pack_folder(config, environment).parent.parent / source / TRAIN_TAR
        if not place.is_file():
            shapes.make_tar(place, MADE_SOURCES[source])
        return place
    root = layout.image_root(config, environment)
    found = [root / place for place in PLACES[source] if (root / place).exists()]
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(
            f"data.source={source} is in {root} more than once ({', '.join(map(str, found))}): "
            "move all but one away, or give data.dir=FOLDER with only one"
        )
    raise UserError(
        f"data.source={source} is not in {root} (looked for {', '.join(PLACES[source])}): "
        "point IMAGENET_DIR or data.dir at the folder that holds it"
    )


def is_image(name: str) -> bool:
    """Whether a file's name is an image's: a known suffix, not hidden."""
    path = PurePosixPath(name)
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def check_stray(place: Path, names: list[str]) -> None:
    """Raise UserError where one of the files beside the classes is an image: it has no class."""
    stray = [name for name in names if is_image(name)]
    if stray:
        raise UserError(
            f"{place} holds images that belong to no class ({', '.join(stray[:3])}): "
            "put each into the folder of its class"
        )


def assemble(
    kind: str, place: Path, by_class: Mapping[str, list[ImageFile]], ignored: int
) -> ImageSet:
    """The image set of unsorted classes whose images have no labels yet."""
    empty = sorted(name for name, images in by_class.items() if not images)
    if len(empty) == len(by_class):
        raise UserError(
            f"{place} holds no images: class folders (or class tars) with "
            f"{'|'.join(sorted(IMAGE_SUFFIXES))} files are expected there"
        )
    if empty:
        raise UserError(
            f"{len(empty)} classes of {place} are empty ({', '.join(empty)}): "
            "complete them or take them away"
        )
    classes = sorted(by_class)
    images = [
        ImageFile(label, image.name, image.offset, image.size)
        for label, name in enumerate(classes)
        for image in sorted(by_class[name], key=lambda image: image.name)
    ]
    return ImageSet(kind, place, classes, images, ignored)


# --- tree --------------------------------------------------------------------------------------


def list_tree(place: Path) -> ImageSet:
    """The image set in the class folders of `place`; hidden folders are no classes."""
    folders, files = list_folder(place)
    check_stray(place, files)
    by_class: dict[str, list[ImageFile]] = {}
    ignored = len(files)
    for folder in folders:
        files = list_folder(place / folder)[1]
        by_class[folder] = [ImageFile(-1, f"{folder}/{f}") for f in files if is_image(f)]
        ignored += len(files) - len(by_class[folder])
    return assemble("tree", place, by_class, ignored)


def list_folder(place: Path) -> tuple[list[str], list[str]]:
    """Names of the folders that are not hidden, and of everything else, dead links too."""
    with os.scandir(place) as scan:
        entries = [(entry.name, entry.is_dir()) for entry in scan]
    folders = [name for name, is_folder in entries if is_folder and not name.startswith(".")]
    return folders, [name for name, is_folder in entries if not is_folder]


# --- tar of tars -------------------------------------------------------------------------------


def list_tar(place: Path) -> ImageSet:
    """The image set in the class tars inside the tar `place`."""
    by_class: dict[str, list[ImageFile]] = {}
    ignored = 0
    with place.open("rb") as stream, open_tar(stream, str(place)) as outer:
        for tar in plain_files(outer, str(place)):
            if not tar.name.endswith(".tar"):
                check_stray(place, [tar.name])
                ignored += 1
                continue
            name = PurePosixPath(tar.name).stem
            if name in by_class:
                raise UserError(f"{place} holds class {name} twice: use the original tar")
            by_class[name], others = list_class_tar(outer, tar, f"{place}: {tar.name}")
            ignored += others
    return assemble("tar", place, by_class, ignored)


def list_class_tar(
    outer: tarfile.TarFile, tar: tarfile.TarInfo, where: str
) -> tuple[list[ImageFile], int]:
    """Images of one class tar, with offsets in the outer tar, and the number of other files."""
    folder = PurePosixPath(tar.name).stem
    images = []
    ignored = 0
    with open_tar(outer.extractfile(tar), where) as inner:
        for member in plain_files(inner, where):
            if is_image(member.name):
                name = f"{folder}/{PurePosixPath(member.name)}"
                offset = tar.offset_data + member.offset_data
                images.append(ImageFile(-1, name, offset, member.size))
            else:
                ignored += 1
    return images, ignored


def open_tar(stream: IO[bytes] | None, where: str) -> tarfile.TarFile:
    """Open a tar without compression."""
    try:
        return tarfile.open(fileobj=stream, mode="r:")
    except tarfile.TarError as error:
        raise damaged(where, str(error)) from error


def damaged(where: str, why: str) -> UserError:
    """The error for a tar that cannot be read to its end."""
    return UserError(
        f"{where} is no complete tar without compression ({why}): delete the tar and get it again"
    )


def plain_files(archive: tarfile.TarFile, where: str) -> Iterator[tarfile.TarInfo]:
    """The files of a tar; raises UserError for other members than files and folders.

    tarfile takes a damaged header for the end, so the block of zeros that ends a tar is asked for.
    """
    try:
        for member in archive:
            if not member.isdir():
                check_member(member, where)
                yield member
        stream = archive.fileobj
        assert stream is not None
        stream.seek(archive.offset)
        if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise damaged(where, f"it breaks off or is damaged at byte {archive.offset}")
    except tarfile.TarError as error:
        raise damaged(where, str(error)) from error


def check_member(member: tarfile.TarInfo, where: str) -> None:
    """Raise UserError for a member that is no plain file with a plain relative name."""
    path = PurePosixPath(member.name)
    plain = member.isreg() and not member.issparse()
    if path.is_absolute() or ".." in path.parts or not plain:
        raise UserError(
            f"{where} holds the member {member.name!r}, which is a link, a special file or has a "
            "path that leads elsewhere: use the original tar of class tars"
        )
