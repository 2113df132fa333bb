"""Zips: what zipfile writes is read entry by entry, and everything odd or damaged is refused."""

import random
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.base.errors import UserError
from pipeline.images.sources import zips
from pipeline.images.sources.base import Item, Member
from pipeline.images.sources.reading import read_all
from tests.image_sets import make_zip

FILES = [
    ("a/1.png", b"1" * 5000),
    ("a/é.png", b"\x89PNG\r\n" + bytes(3000)),
    ("b/", b""),
    ("c", b""),
]


def contents(place: Path) -> dict[str, bytes]:
    members = dict(zips.list_zip(place))
    data = read_all([Item(name, member) for name, member in members.items()])
    return dict(zip(members, data, strict=True))  # type: ignore[arg-type]


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("comment", [b"", b"a comment" * 99])
def test_what_zipfile_writes_is_read(tmp_path: Path, method: int, comment: bytes) -> None:
    place = tmp_path / "a.zip"
    with zipfile.ZipFile(place, "w", method) as archive:
        archive.comment = comment
        for name, data in FILES:
            with archive.open(name, "w", force_zip64=True) as stream:
                stream.write(data)
    assert contents(place) == dict(FILES)
    heads = {name: zips.read_head(member) for name, member in zips.list_zip(place)}
    assert heads == {name: data[:16] for name, data in FILES}


@pytest.mark.slow
def test_more_entries_than_16_bits_count(tmp_path: Path) -> None:
    files = [(f"{k}.png", b"") for k in range(65_600)]
    listed = zips.list_zip(make_zip(tmp_path / "a.zip", files))
    assert [name for name, _ in listed] == [name for name, _ in files]


def test_values_of_64_bits(tmp_path: Path) -> None:
    """A zip of more than 4 GB: the hole in it takes no room."""
    place = tmp_path / "a.zip"
    with place.open("wb") as stream:
        with zipfile.ZipFile(stream, "w") as archive:
            archive.writestr("1.png", b"first")
            archive.fp.seek(5 * 2**30)  # type: ignore[union-attr]
            archive.start_dir = archive.fp.tell()  # type: ignore[union-attr]
            archive.writestr("2.png", b"second")
    assert contents(place) == {"1.png": b"first", "2.png": b"second"}
    assert dict(zips.list_zip(place))["2.png"].header == 5 * 2**30


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "something else": lambda data: b"something else" * 1000,
    "cut in the directory": lambda data: data[:-60],
    "cut in an image": lambda data: data[: len(data) // 2],
    "cut at the front": lambda data: data[100:],
    "a wrong entry": lambda data: data.replace(b"PK\1\2", b"PK\1\3"),
    "a longer name": lambda data: data[:-100] + b"\xff" * 20 + data[-80:],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_directories(tmp_path: Path, damage: str) -> None:
    place = make_zip(tmp_path / "bad.zip", FILES)
    place.write_bytes(DAMAGES[damage](place.read_bytes()))
    with pytest.raises(UserError, match=r"bad\.zip (is not a complete zip|holds the member)"):
        list(zips.list_zip(place))


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("at", [0, 5, 40, 2000])
def test_a_damaged_file_is_an_error_of_its_own(tmp_path: Path, method: int, at: int) -> None:
    """Its local header, its length there, and its bytes, which the checksum tells."""
    noise = random.Random(0).randbytes(5000)
    place = make_zip(tmp_path / "bad.zip", [("1.png", noise), *FILES], compress_type=method)
    data = bytearray(place.read_bytes())
    data[at] ^= 0x55
    place.write_bytes(data)
    found = contents(place)
    if at != 5:  # a field that nothing reads
        assert isinstance(found.pop("1.png"), OSError)
    assert dict(FILES).items() <= found.items()


@pytest.mark.parametrize(
    "name", ["../evil.jpg", "/x/evil.jpg", "x/../../evil.jpg", "x\\evil.jpg", "evil.jpg->"]
)
def test_members_that_lead_elsewhere(tmp_path: Path, name: str) -> None:
    place = make_zip(tmp_path / "bad.zip", [(name, b"evil")])
    with pytest.raises(UserError, match=r"bad\.zip holds the member '.*evil.jpg', which is a"):
        list(zips.list_zip(place))


def test_members_of_other_kinds(tmp_path: Path) -> None:
    place = make_zip(tmp_path / "bad.zip", [("a.png", b"a")], compress_type=zipfile.ZIP_LZMA)
    with pytest.raises(UserError, match=r"'a.png', which is encrypted or compressed .*method 14"):
        list(zips.list_zip(place))
    data = make_zip(place, [("a.png", b"a")]).read_bytes()
    entry = data.index(b"PK\1\2")
    place.write_bytes(data[: entry + 8] + b"\1" + data[entry + 9 :])
    with pytest.raises(UserError, match="'a.png', which is encrypted"):
        list(zips.list_zip(place))
    place.write_bytes(data[: entry + 24] + b"\0\0\0\x70" + data[entry + 28 :])
    with pytest.raises(UserError, match=r"the member 'a.png' of 1.9 GB, which is not an image"):
        list(zips.list_zip(place))


def test_a_bomb_is_unpacked_no_further_than_it_says(tmp_path: Path) -> None:
    place = make_zip(tmp_path / "a.zip", [("a.png", bytes(10**7))], compress_type=8)
    (member,) = (member for _, member in zips.list_zip(place))
    short = Member(member.path, member.header, member.packed, 8, 1000, member.crc)
    assert isinstance(zips.read_member(short), OSError)
