"""Zips: their directory, read an entry at a time, and single files in them.

Python's zipfile keeps an object for each of a million entries. Here nothing is kept: the directory
at the end of the file is read in order, and the processes that decode images unpack them.
"""

import io
import stat
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from pipeline.base.errors import UserError
from pipeline.images.formats import HEAD_BYTES
from pipeline.images.sources.base import MOST_MEMBER, Member

# Records of the format (APPNOTE.TXT of PKWARE, 4.3): signature, then little-endian fields
END = struct.Struct("<4s4H2LH")
END64 = struct.Struct("<4sQ2H2L4Q")
LOCATOR64 = struct.Struct("<4sLQL")
ENTRY = struct.Struct("<4s6H3L5H2L")
LOCAL = struct.Struct("<4s5H3L2H")
FULL, FULL_SHORT = 2**32 - 1, 2**16 - 1  # the value is in a record of 64 bits
EXTRA64 = 1  # kind of the extra field with such values

MOST_COMMENT = 2**16  # bytes behind the end record
ENCRYPTED, UTF8 = 1, 0x800  # flags
STORED, DEFLATED = 0, 8  # methods


class Directory(NamedTuple):
    """Where the entries of a zip are."""

    offset: int  # bytes
    size: int
    num: int  # entries


def list_zip(place: Path) -> Iterator[tuple[str, Member]]:
    """Name and place of each file and folder (its name ends in "/") of a zip, in its order.

    Raises UserError for a zip that is damaged or breaks off, and for members that are encrypted,
    links, packed in other ways, or lead elsewhere.
    """
    try:
        with place.open("rb", buffering=2**20) as stream:
            directory = find_directory(stream, place)
            stream.seek(directory.offset)
            for _ in range(directory.num):
                name, member = read_entry(stream, place)
                if member.header + LOCAL.size + member.packed > directory.offset:
                    raise damaged(place, f"{name!r} lies beyond its end")
                yield name, member
            if stream.tell() != directory.offset + directory.size:
                raise damaged(place, "its directory has another length")
    except struct.error as error:
        raise damaged(place, str(error)) from error


def damaged(place: Path, why: str) -> UserError:
    """The error for a zip that cannot be read to its end."""
    return UserError(f"{place} is not a complete zip ({why}): delete it and get it again")


def find_directory(stream: BinaryIO, place: Path) -> Directory:
    """The directory that the record at the end of a zip names; raises UserError without one."""
    # The last record, before a comment
    length = stream.seek(0, io.SEEK_END)
    stream.seek(max(0, length - MOST_COMMENT - END.size))
    tail_at = stream.tell()
    tail = stream.read()
    at = tail.rfind(b"PK\5\6")
    if at < 0:
        raise damaged(place, "its directory is missing at the end")
    _, disk, _, _, num, size, offset, _ = END.unpack_from(tail, at)

    # The same in 64 bits
    end_at = tail_at + at
    if num == FULL_SHORT or size == FULL or offset == FULL:
        stream.seek(max(0, end_at - LOCATOR64.size))
        signature, _, record_at, _ = LOCATOR64.unpack(stream.read(LOCATOR64.size))
        if signature == b"PK\6\7":
            stream.seek(record_at)
            *_, num, size, offset = END64.unpack(stream.read(END64.size))
            end_at = record_at

    # Whole, and of one file
    if disk not in (0, FULL_SHORT) or offset + size != end_at:
        raise damaged(place, "its directory is not where it should be")
    return Directory(offset, size, num)


def read_entry(stream: BinaryIO, place: Path) -> tuple[str, Member]:
    """The next entry of a directory; raises UserError for what an image set does not need."""
    # Fixed fields, then name, extra fields and comment
    fields = ENTRY.unpack(stream.read(ENTRY.size))
    signature, made_by, _, flags, method, _, _, crc, packed, size, *lengths = fields
    name_length, extra_length, comment_length, _, _, attributes, header = lengths
    name_bytes, extra = stream.read(name_length), stream.read(extra_length)
    stream.seek(comment_length, io.SEEK_CUR)
    if signature != b"PK\1\2" or len(extra) != extra_length:
        raise damaged(place, "its directory breaks off")
    name = name_bytes.decode("utf-8" if flags & UTF8 else "cp437", "surrogateescape")

    # Values of 64 bits, in this order, for those that are full
    large = wide_values(extra)
    size, packed, header = (
        next(large, value) if value == FULL else value for value in (size, packed, header)
    )
    mode = attributes >> 16 if made_by >> 8 == 3 else 0  # of Unix
    check_entry(place, name, flags, method, mode, size)
    return name, Member(str(place), header, packed, method, size, crc)


def wide_values(extra: bytes) -> Iterator[int]:
    """The numbers of 64 bits in the extra fields of an entry."""
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<2H", extra)
        if kind == EXTRA64:
            yield from (
                value for (value,) in struct.iter_unpack("<Q", extra[4 : 4 + length // 8 * 8])
            )
        extra = extra[4 + length :]


def check_entry(place: Path, name: str, flags: int, method: int, mode: int, size: int) -> None:
    """Raise UserError unless an entry is a plain file or folder with a plain relative name."""
    # Links and names
    leads_elsewhere = name.startswith("/") or ".." in name.split("/") or {"\\", "\0"} & set(name)
    plain = not stat.S_IFMT(mode) or stat.S_ISREG(mode) or stat.S_ISDIR(mode)
    if leads_elsewhere or not plain:
        raise UserError(
            f"{place} holds the member {name!r}, which is a link, a special file or has a "
            "path that leads elsewhere: use the original archive"
        )
    # Contents
    if flags & ENCRYPTED or method not in (STORED, DEFLATED):
        raise UserError(
            f"{place} holds the member {name!r}, which is encrypted or compressed in another way "
            f"than deflate (method {method}): make the zip again without"
        )
    if size > MOST_MEMBER:
        raise UserError(
            f"{place} holds the member {name!r} of {size / 1e9:.1f} GB, which is not an image: "
            "use the original archive"
        )


# --- one file ------------------------------------------------------------------------------------


def read_member(member: Member) -> bytes | OSError:
    """The bytes of a file in a zip, or why they cannot be read."""
    try:
        with Path(member.path).open("rb", buffering=0) as stream:
            packed = packed_bytes(stream, member, member.packed)
    except OSError as error:
        return error
    data = unpack(packed, member.method, member.size)
    if len(data) != member.size or zlib.crc32(data) != member.crc:
        return OSError("the zip is damaged within the image")
    return data


def read_head(member: Member) -> bytes:
    """The first HEAD_BYTES bytes of a file in a zip; fewer if they cannot be read."""
    with Path(member.path).open("rb", buffering=0) as stream:
        packed = packed_bytes(stream, member, min(member.packed, 1024))
    return unpack(packed, member.method, HEAD_BYTES)


def packed_bytes(stream: BinaryIO | io.FileIO, member: Member, most: int) -> bytes:
    """The first bytes of a member as they are in the zip; none if its local header is damaged."""
    stream.seek(member.header)
    header = stream.read(LOCAL.size)
    if len(header) < LOCAL.size or not header.startswith(b"PK\3\4"):
        return b""
    *_, name_length, extra_length = LOCAL.unpack(header)
    stream.seek(name_length + extra_length, io.SEEK_CUR)
    return stream.read(most)


def unpack(packed: bytes, method: int, most: int) -> bytes:
    """At most the first `most` bytes of a member; fewer if it is damaged."""
    if method == STORED or not most:
        return packed[:most]
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, most)
    except zlib.error:
        return b""
