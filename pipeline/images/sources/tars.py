"""ImageNet's original tar of class tars, and the checks of every tar: plain members, a true end.

Tars without compression are read in place: their headers say at which byte each image begins, so
that nothing is unpacked and every process can open the tar itself.
"""

import gzip
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from pipeline.base.errors import UserError
from pipeline.images.formats import HEAD_BYTES, is_image
from pipeline.images.sources.base import (
    Item,
    Source,
    Span,
    Stretch,
    check_beside_classes,
    check_classes,
)
from pipeline.images.sources.packagings import Location
from pipeline.images.walk import Ignored

TAIL = 2**20  # bytes; writers end a tar with less zeros than this


# --- any tar -----------------------------------------------------------------------------------


@contextmanager
def reading(where: str, kind: str = "tar without compression") -> Iterator[None]:
    """Raise UserError for the errors of a tar, compressed or not, that is damaged or broken off."""
    try:
        yield
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(
            f"{where} is not a complete {kind} ({error}): delete it and get it again"
        ) from error


def members(archive: tarfile.TarFile, where: str) -> Iterator[tarfile.TarInfo]:
    """The files and folders of a tar, which is read forwards, one in memory at a time.

    Raises UserError for members of other kinds and tarfile.TarError if the tar is damaged.
    """
    while (member := archive.next()) is not None:
        archive.members.clear()  # type: ignore[attr-defined]  # or it keeps all
        check_member(member, where)
        yield member
    check_end(archive)


def check_member(member: tarfile.TarInfo, where: str) -> None:
    """Raise UserError unless a member is a plain file or folder with a plain relative name."""
    path = PurePosixPath(member.name)
    plain = member.isdir() or (member.isreg() and not member.issparse())
    if path.is_absolute() or ".." in path.parts or not plain:
        raise UserError(
            f"{where} holds the member {member.name!r}, which is a link, a special file or has a "
            "path that leads elsewhere: use the original archive"
        )


def check_end(archive: tarfile.TarFile) -> None:
    """Raise ReadError unless a tar that was read to its end has two blocks of zeros there.

    tarfile takes a damaged header for the end, and so it does a stretch of zeros in a file that
    was laid out at its full length but not filled: too many zeros are an error too.
    """
    stream = archive.fileobj
    assert stream is not None
    whole = stream.tell() == archive.offset + tarfile.BLOCKSIZE
    tail = stream.read(TAIL)
    if not whole or not tarfile.BLOCKSIZE <= len(tail) < TAIL or tail.strip(b"\0"):
        raise tarfile.ReadError(f"it breaks off or is damaged at byte {archive.offset}")


def read(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """The bytes of a file in a tar; raises tarfile.ReadError if they end early."""
    stream = archive.extractfile(member)
    assert stream is not None
    return stream.read()


def read_head(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """The first HEAD_BYTES bytes of a file in a tar; none of a folder."""
    stream = archive.extractfile(member)
    return stream.read(HEAD_BYTES) if stream else b""


def ignore(
    ignored: Ignored, archive: tarfile.TarFile, member: tarfile.TarInfo, prefix: str = ""
) -> None:
    """Count a file of a tar that is not an image by its name."""
    ignored.add(prefix + member.name, read_head(archive, member))


# --- tar of tars -------------------------------------------------------------------------------


def open_at(location: Location) -> Source:
    """The image set at a location."""
    return open_tar_of_tars(location.paths[0])


def open_tar_of_tars(place: Path) -> Source:
    """The image set in the class tars inside the tar `place`; opening it reads every header.

    Raises UserError if the tar is damaged or incomplete, holds members that do not belong in
    one, a class twice, an empty class, or images outside of class tars.
    """
    # class tars, each listed by its headers
    tars: dict[str, tarfile.TarInfo] = {}
    counts: dict[str, int] = {}
    ignored = Ignored()
    with reading(str(place)), tarfile.open(place, "r:") as outer:
        for tar in members(outer, str(place)):
            if tar.isdir():
                continue
            if not tar.name.endswith(".tar"):
                check_beside_classes(place, [tar.name])
                ignore(ignored, outer, tar)
                continue
            name = PurePosixPath(tar.name).stem
            if name in tars:
                raise UserError(f"{place} holds class {name} twice: use the original tar")
            tars[name] = tar
            counts[name] = len(list_class_tar(place, outer, tar, ignored))
    classes = check_classes(place, counts)

    # images of a class at a time, listed again
    def stretches() -> Iterator[Stretch]:
        with reading(str(place)), tarfile.open(place, "r:") as outer:
            for name in classes:
                yield Stretch(name, list_class_tar(place, outer, tars[name]))

    # Summary of all classes
    return Source(
        kind="tar",
        place=place,
        classes=classes,
        num_images=sum(counts.values()),
        stretches=stretches,
        ordered=True,
        ignored=ignored,
    )


def list_class_tar(
    place: Path, outer: tarfile.TarFile, tar: tarfile.TarInfo, ignored: Ignored | None = None
) -> list[Item]:
    """Images of one class tar, sorted by name; its other files are counted in `ignored`."""
    # Images of this class
    folder = PurePosixPath(tar.name).stem
    where = f"{place}: {tar.name}"
    items = []
    with reading(where), tarfile.open(fileobj=outer.extractfile(tar), mode="r:") as inner:
        for member in members(inner, where):
            if member.isdir():
                continue
            if is_image(member.name):
                span = Span(str(place), tar.offset_data + member.offset_data, member.size)
                items.append(Item(f"{folder}/{PurePosixPath(member.name)}", span, member.size))
            elif ignored is not None:
                ignore(ignored, inner, member, f"{folder}/")
    return sorted(items, key=lambda item: item.name)
