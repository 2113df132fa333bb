"""What is wrong with a packaged image set is said by name, when it is opened if that can be."""

import gzip
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.base.errors import UserError
from pipeline.images.sources.base import Row
from pipeline.images.sources.flat import open_flat
from pipeline.images.sources.folder_archives import open_archive
from pipeline.images.sources.gzipped import open_gzipped
from pipeline.images.sources.hub import open_hub
from pipeline.images.sources.parquet import open_parquet, read_rows
from pipeline.images.sources.reading import read_all
from pipeline.images.sources.tars import open_tar_of_tars
from pipeline.images.sources.webdataset import open_webdataset
from tests import image_sets

FISH, FOX = "n01440764", "n02119789"  # labels 0 and 278


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    image_sets.write_synset_photos(root, 12, size=48)
    return root


@pytest.fixture
def copy(photos: Path, tmp_path: Path) -> Path:
    """A place for packagings of the tree."""
    (tmp_path / "train").symlink_to(photos / "train")
    return tmp_path


# --- refusals: every tar -----------------------------------------------------------------------


def tar_bytes(files: list[tuple[str, bytes]], folder: Path) -> bytes:
    return image_sets.make_tar(folder / "scratch.tar", files).read_bytes()


def open_bad(kind: str, folder: Path, files: list[tuple[str, bytes]]) -> None:
    """Open and read a set with these members among good ones."""
    if kind == "tar":
        good = [(f"{FISH}.tar", tar_bytes([("a.JPEG", b"a")], folder))]
        list(open_tar_of_tars(image_sets.make_tar(folder / "bad.tar", good + files)).stretches())
    elif kind == "class tar":
        content = tar_bytes([("a.JPEG", b"a"), *files], folder)
        open_tar_of_tars(image_sets.make_tar(folder / "bad.tar", [(f"{FISH}.tar", content)]))
    elif kind == "tar.gz":
        good = [(f"train_blurred/{FISH}/a.jpg", b"a")]
        place = image_sets.make_tar(folder / "bad.tar.gz", good + files, "w:gz")
        list(open_gzipped(place).stretches())
    elif kind in ("folders.tar", "folders.zip"):
        write = image_sets.make_tar if kind == "folders.tar" else image_sets.make_zip
        good = [(f"train/{FISH}/a.JPEG", b"a")]
        list(open_archive(write(folder / f"bad{kind[7:]}", good + files), kind).stretches())
    elif kind == "hub":
        place = image_sets.make_tar(
            folder / "bad.tar.gz", [(f"{FISH}_1.JPEG", b"a"), *files], "w:gz"
        )
        list(open_hub(folder, [place]).stretches())
    else:
        good = [("a.jpg", b"a"), ("a.cls", b"0")]
        open_webdataset(folder, [image_sets.make_tar(folder / "bad.tar", good + files)])


TARS = ["tar", "class tar", "folders.tar", "tar.gz", "hub", "webdataset"]


@pytest.mark.parametrize("kind", [*TARS, "folders.zip"])
@pytest.mark.parametrize("name", ["../evil.jpg", "/x/evil.jpg", "x/../../evil.jpg", "evil.jpg->"])
def test_members_that_do_not_belong_in_a_tar(kind: str, name: str, tmp_path: Path) -> None:
    content = b"" if name.endswith("->") else b"evil"
    with pytest.raises(
        UserError, match=r"bad\.(tar|zip).*holds the member '.*evil.jpg', which is a"
    ):
        open_bad(kind, tmp_path, [(name, content)])


@pytest.mark.parametrize("kind", TARS)
def test_devices_and_hard_links(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for member_type in (tarfile.CHRTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE):
        monkeypatch.setattr(tarfile, "SYMTYPE", member_type)
        with pytest.raises(UserError, match="holds the member 'odd'"):
            open_bad(kind, tmp_path, [("odd->", b"")])


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut in an image": lambda data: data[: len(data) // 2 + 700],
    "cut at a block": lambda data: data[: len(data) // 1024 * 512],
    "without its end": lambda data: data.rstrip(b"\0") + bytes(-len(data.rstrip(b"\0")) % 512),
    "never filled": lambda data: data[: len(data) // 2] + bytes(2**21),
    "something else": lambda data: b"something else" * 1000,
    "two in one": lambda data: data + data,
    "empty": lambda data: b"",
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", ["tar", "folders.tar", "tar.gz", "hub", "webdataset"])
def test_damaged_tars(kind: str, damage: str, copy: Path) -> None:
    """Of a gzipped tar, the tar inside was damaged before it was compressed."""
    damaged = DAMAGES[damage]
    with pytest.raises(UserError, match=r"\.tar.* is not a complete (gzipped )?tar"):
        if kind in ("tar.gz", "hub"):
            packed = {"tar.gz": lambda: [image_sets.write_gzipped(copy)]}
            places = packed.get(kind, lambda: image_sets.write_hub(copy))()
            data = gzip.decompress(places[-1].read_bytes())
            places[-1].write_bytes(gzip.compress(damaged(data), 1))
            list((open_hub(copy, places) if kind == "hub" else open_gzipped(places[0])).stretches())
        elif kind == "folders.tar":
            place = image_sets.write_folders_tar(copy)
            place.write_bytes(damaged(place.read_bytes()))
            open_archive(place, kind)
        elif kind == "tar":
            place = image_sets.write_tar_of_tars(copy)
            place.write_bytes(damaged(place.read_bytes()))
            open_tar_of_tars(place)
        else:
            place = image_sets.write_webdataset(copy)[1]
            place.write_bytes(damaged(place.read_bytes()))
            open_webdataset(copy, list(copy.glob("*.tar")))


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.999, -5])
def test_a_gzip_that_breaks_off(kept: float, copy: Path) -> None:
    place = image_sets.write_gzipped(copy)
    data = place.read_bytes()
    place.write_bytes(data[: int(kept * len(data)) if kept >= 0 else int(kept)])
    with pytest.raises(UserError, match="train_blurred.tar.gz is not a complete gzipped tar"):
        list(open_gzipped(place).stretches())


@pytest.mark.parametrize("at", [1, 2000, 40000, -6])
def test_a_gzip_with_a_wrong_byte(at: int, copy: Path) -> None:
    """Wherever it is: at the latest the checksum, which is at -8…-4, tells."""
    place = image_sets.write_gzipped(copy)
    data = bytearray(place.read_bytes())
    data[at] ^= 0x55
    place.write_bytes(data)
    with pytest.raises(UserError, match="train_blurred.tar.gz is not a complete gzipped tar"):
        list(open_gzipped(place).stretches())


# --- refusals: each packaging's own ------------------------------------------------------------


def test_a_class_tar_that_is_damaged_is_named(tmp_path: Path) -> None:
    content = tar_bytes([("a.JPEG", b"a"), ("b.JPEG", b"b")], tmp_path)[:1800]
    with pytest.raises(UserError, match=rf"bad.tar: {FOX}.tar is not a complete tar"):
        open_bad("tar", tmp_path, [(f"{FOX}.tar", content)])


def test_classes_of_a_tar(tmp_path: Path) -> None:
    one, none = (tar_bytes(files, tmp_path) for files in ([("a.JPEG", b"a")], [("a.txt", b"a")]))
    for name, content, message in (
        (f"{FISH}.tar", one, f"holds class {FISH} twice"),
        (f"{FOX}.tar", none, rf"1 classes of .* are empty \({FOX}\)"),
        ("stray.JPEG", b"a", "belong to no class"),
    ):
        with pytest.raises(UserError, match=message):
            open_bad("tar", tmp_path, [(name, content)])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("stray.jpg", "belong to no class"),
        ("bad/stray.jpg", "belong to no class"),
        (
            "train_blurred/stray.jpg",
            "images in train_blurred/n01440764 and in train_blurred, which",
        ),
        (f"val_blurred/{FISH}/b.jpg", "which do not lie side by side"),
        (f"train_blurred/{FISH}/more/b.jpg", "which do not lie side by side"),
        (f"train_blurred/{FOX}/", rf"1 classes of .* are empty \({FOX}\)"),
    ],
)
def test_classes_of_a_gzipped_tar(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        open_bad("tar.gz", tmp_path, [(name, b"")])


@pytest.mark.parametrize("kind", ["folders.tar", "folders.zip"])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("stray.jpg", "belong to no class"),
        ("bad/stray.jpg", "belong to no class"),
        ("val/n1/stray.jpg", "which do not lie side by side"),
        (f"train/{FISH}/more/b.jpg", "which do not lie side by side"),
        (f"train/{FOX}/", rf"1 classes of .* are empty \({FOX}\)"),
        ("train/dataset.json", "its folders count images and are not classes"),
    ],
)
def test_classes_of_an_archive_of_folders(
    kind: str, name: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        open_bad(kind, tmp_path, [(name, b"")])


@pytest.mark.parametrize("kind", ["folders.tar", "folders.zip"])
def test_an_archive_without_images(kind: str, tmp_path: Path) -> None:
    write = image_sets.make_tar if kind == "folders.tar" else image_sets.make_zip
    with pytest.raises(UserError, match="holds no images"):
        open_archive(write(tmp_path / "bad", [(f"{FISH}/a.txt", b"a")]), kind)


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.999, -5])
def test_a_zip_that_breaks_off(kept: float, copy: Path) -> None:
    place = image_sets.write_folders_zip(copy)
    data = place.read_bytes()
    place.write_bytes(data[: int(kept * len(data)) if kept >= 0 else int(kept)])
    with pytest.raises(UserError, match="train.zip is not a complete zip"):
        open_archive(place, "folders.zip")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cat_1.JPEG", "cat_1.JPEG, whose name says no synset of ImageNet"),
        ("n99999999_1.JPEG", "n99999999_1.JPEG, whose name says no synset of ImageNet"),
        (f"{FISH}_1_{FOX}.JPEG", f"says the synsets {FISH} and {FOX}"),
    ],
)
def test_names_in_the_tars_of_imagenet_1k(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        open_bad("hub", tmp_path, [(name, b"a")])


def test_each_tar_of_imagenet_1k_holds_images(tmp_path: Path) -> None:
    good = image_sets.make_tar(tmp_path / "0.tar.gz", [(f"{FISH}_1.JPEG", b"a")], "w:gz")
    bad = image_sets.make_tar(tmp_path / "1.tar.gz", [("notes.txt", b"a")], "w:gz")
    with pytest.raises(UserError, match=r"1\.tar\.gz holds no images"):
        open_hub(tmp_path, [good, bad])


def test_names_without_a_class(tmp_path: Path) -> None:
    for name in ("cat_1.png", "dog.png", "_3.png"):
        (tmp_path / name).touch()
    with pytest.raises(
        UserError, match=r"2 images of .* no class before a _ .*\(_3.png, dog.png\)"
    ):
        open_flat(tmp_path, "adm")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no images"):
        open_flat(tmp_path / "empty", "flat")


def test_folders_that_hold_no_class_are_no_classes(tmp_path: Path) -> None:
    folders = ["./", "train_blurred/", "train_blurred/.hidden/", "other/"]
    members = [(f"train_blurred/{FISH}/a.jpg", b"a"), *((name, b"") for name in folders)]
    source = open_gzipped(image_sets.make_tar(tmp_path / "folders.tar.gz", members, "w:gz"))
    items = [item for stretch in source.stretches() for item in stretch.items]
    assert [item.name for item in items] == [f"{FISH}/a.jpg"]


def test_a_gzipped_tar_without_images(tmp_path: Path) -> None:
    place = image_sets.make_tar(tmp_path / "bad.tar.gz", [(f"{FISH}/a.txt", b"a")], "w:gz")
    with pytest.raises(UserError, match="holds no images"):
        open_gzipped(place)


def test_a_member_that_would_fill_the_memory(tmp_path: Path) -> None:
    """GNU tar writes the header of a large file; the rest need not be there."""
    with (tmp_path / "huge.jpg").open("wb") as stream:
        stream.truncate(1_100_000_000)
    tar = subprocess.Popen(["tar", "c", "-C", tmp_path, "huge.jpg"], stdout=subprocess.PIPE)
    assert tar.stdout is not None
    head = tar.stdout.read(4096)
    tar.stdout.close()
    tar.wait()
    (tmp_path / "bad.tar.gz").write_bytes(gzip.compress(head))
    with pytest.raises(UserError, match=r"holds the member 'huge.jpg' of 1.1 GB"):
        open_gzipped(tmp_path / "bad.tar.gz")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([("b.jpg", b"b")], r"bad.tar: the key b has an image and no label \(.cls\)"),
        ([("b.cls", b"0")], r"bad.tar: the key b has a label \(.cls\) and no image"),
        ([("b.jpg", b"b"), ("b.cls", b"1000")], r"bad.tar: the key b has the label 1000"),
        ([("b.jpg", b"b"), ("b.cls", b"-1")], r"bad.tar: the key b has the label -1"),
        ([("b.jpg", b"b"), ("b.cls", b"tench")], "b.cls does not hold a label as ASCII digits"),
        ([("b.jpg", b"b"), ("b.cls", b"0" * 999)], "b.cls does not hold a label as ASCII digits"),
        ([("a.png", b"b")], "bad.tar holds several images with the key a"),
        ([(f"{FOX}_1.jpg", b"b"), (f"{FOX}_1.cls", b"0")], f"its name says {FOX}"),
    ],
)
def test_bad_webdatasets(files: list[tuple[str, bytes]], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        open_bad("webdataset", tmp_path, files)


NO_BYTES = pa.array(
    [{"bytes": b"a", "path": "a.jpg"}, {"bytes": None, "path": "b.jpg"}, {"bytes": b"c"}]
)
BAD_TABLES = {
    "has the label 1000": image_sets.hub_table(label=pa.array([0, 1000, 0])),
    "bad.parquet has the label -1": image_sets.hub_table(label=pa.array([-1, -1, -1])),
    "has the label -1, which": image_sets.hub_table(label=pa.array([0, None, 0])),
    "has no column label": image_sets.hub_table().drop_columns("label"),
    "has no column image.bytes and image.path": image_sets.hub_table(
        image=pa.array([b"a", b"b", b"c"])
    ),
    "has no column label of the expected type": image_sets.hub_table(
        label=pa.array(["a", "b", "c"])
    ),
    "has rows without image bytes": image_sets.hub_table(image=NO_BYTES),
    "holds no images": image_sets.hub_table()[:0],
    f"row 2 has the label 278 .*{FOX}.* says {FISH}": image_sets.hub_table(
        image=pa.array([{"bytes": b"a", "path": f"{FISH}_{i}_{FISH}.JPEG"} for i in range(3)])
    ),
}


@pytest.mark.parametrize("message", BAD_TABLES)
def test_bad_parquet(message: str, tmp_path: Path) -> None:
    pq.write_table(BAD_TABLES[message], tmp_path / "bad.parquet")
    with pytest.raises(UserError, match=message):
        open_parquet(tmp_path, [tmp_path / "bad.parquet"])


def test_missing_bytes_that_no_statistics_tell_of(tmp_path: Path) -> None:
    place = tmp_path / "bad.parquet"
    pq.write_table(image_sets.hub_table(image=NO_BYTES), place, write_statistics=False)
    source = open_parquet(tmp_path, [place])
    items = next(source.stretches()).items
    with pytest.raises(UserError, match="bad.parquet has rows without image bytes"):
        read_all(items)


def test_damaged_parquet(copy: Path) -> None:
    place = image_sets.write_parquet(copy, row_group=100)[1]
    data = place.read_bytes()
    for bad in (b"", data[:-100], data[: len(data) // 2], b"no parquet" * 99):
        place.write_bytes(bad)
        with pytest.raises(UserError, match="00001-of-00002.parquet cannot be read as a Parquet"):
            open_parquet(copy, [place])
    place.write_bytes(data.replace(b".JPEG", b"\xdcJPEG"))  # no UTF-8
    with pytest.raises(UserError, match="00001-of-00002.parquet cannot be read as a Parquet"):
        open_parquet(copy, [place])
    place.write_bytes(data[:4] + bytes(2000) + data[2004:])  # a page's header
    with pytest.raises(UserError, match="00001-of-00002.parquet cannot be read as a Parquet"):
        read_rows([Row(str(place), 0, 0)])
    place.unlink()
    with pytest.raises(UserError, match="00001-of-00002.parquet cannot be read as a Parquet"):
        read_rows([Row(str(place), 0, 0)])
