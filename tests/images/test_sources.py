"""Every packaging of one tree gives its images, the same ones each time."""

import gzip
import itertools
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.images.sources import gzipped, parquet
from pipeline.images.sources.base import Item, Row, Source, Span, Where
from pipeline.images.sources.flat import open_flat
from pipeline.images.sources.folder_archives import open_archive
from pipeline.images.sources.gzipped import open_gzipped
from pipeline.images.sources.hub import open_hub
from pipeline.images.sources.parquet import open_parquet
from pipeline.images.sources.reading import read_all
from pipeline.images.sources.synsets import devkit_order, sorted_synsets
from pipeline.images.sources.tars import open_tar_of_tars
from pipeline.images.sources.webdataset import open_webdataset
from tests import image_sets

KINDS = ["tar", "folders.tar", "folders.zip", "tar.gz", "hub", "parquet", "webdataset", "adm"]
NOTES = ("tar", "folders.tar", "folders.zip", "tar.gz")  # these hold notes.txt of the tree too
PER_CLASS = 12  # two digits: _10 sorts before _2
FISH, FOX = "n01440764", "n02119789"  # labels 0 and 278


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    image_sets.write_synset_photos(root, PER_CLASS, size=48)
    (root / "train" / FISH / "notes.txt").write_text("no image")
    return root


def images(source: Source) -> dict[str, bytes]:
    """Name without suffix -> bytes, in the order of the source; no name may come twice."""
    items = [item for stretch in source.stretches() for item in stretch.items]
    names = [item.name.rpartition(".")[0] for item in items]
    assert len(set(names)) == len(names)
    return dict(zip(names, read_all(items), strict=True))  # type: ignore[arg-type]


def expected(root: Path) -> dict[str, bytes]:
    return {name.rpartition(".")[0]: data for name, data in image_sets.tree(root).items()}


def open_all(kind: str, root: Path) -> Source:
    """The tree in `root` packaged and opened again."""
    match kind:
        case "folders.tar":
            return open_archive(image_sets.write_folders_tar(root), kind)
        case "folders.zip":
            return open_archive(image_sets.write_folders_zip(root), kind)
        case "hub":
            return open_hub(root, image_sets.write_hub(root))
        case "adm":
            return open_flat(image_sets.write_adm(root) / "train", kind)
        case "tar":
            return open_tar_of_tars(image_sets.write_tar_of_tars(root))
        case "tar.gz":
            return open_gzipped(image_sets.write_gzipped(root))
        case "parquet":
            return open_parquet(root, image_sets.write_parquet(root))
    return open_webdataset(root, image_sets.write_webdataset(root))


@pytest.fixture
def copy(photos: Path, tmp_path: Path) -> Path:
    """A place for other packagings of the same tree."""
    (tmp_path / "train").symlink_to(photos / "train")
    return tmp_path


# --- synsets -----------------------------------------------------------------------------------


def test_synsets_are_the_devkits() -> None:
    ids = devkit_order()
    assert ids[:4] == ["n02119789", "n02100735", "n02110185", "n02096294"]
    assert len(set(ids)) == len(ids) == 1000 and ids.index(FISH) == 448
    assert sorted_synsets()[:3] == [FISH, "n01443537", "n01484850"]
    assert sorted_synsets()[-1] == "n15075141" and sorted_synsets().index(FOX) == 278


# --- the same images from all ------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_packaging_gives_the_tree(
    kind: str, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gzipped, "MOST_IMAGES", 10)
    monkeypatch.setattr(parquet, "MOST_ROWS", 10)
    source = open_all(kind, copy)
    found, tree = images(source), expected(copy)
    assert source.kind == kind
    assert dict(sorted(found.items())) == tree
    assert list(found) == list(tree) if source.ordered else sorted(found) == list(tree)
    assert source.classes in (None, sorted(image_sets.SYNSETS))
    assert source.num_images in (None, len(tree))
    assert source.ignored.num == num_ignored(kind)


@pytest.mark.parametrize("kind", KINDS)
def test_stretches_come_again_the_same(kind: str, copy: Path) -> None:
    source = open_all(kind, copy)
    first, again = list(source.stretches()), list(source.stretches())
    assert first == again
    assert len({stretch.name for stretch in first}) == len(first)
    assert source.ignored.num == num_ignored(kind)


def num_ignored(kind: str) -> int:
    """Other files: notes.txt, and what a Mac adds to a zip."""
    return (kind in NOTES) + (kind == "folders.zip")


def test_sources_that_come_in_the_order_of_the_pack(copy: Path) -> None:
    assert [kind for kind in KINDS if open_all(kind, copy).ordered] == ["tar", "adm"]


def test_both_names_of_imagenet_1k_are_one(copy: Path) -> None:
    found = images(open_hub(copy, image_sets.write_hub(copy, double=False)))
    assert dict(sorted(found.items())) == expected(copy)


def test_adms_images_lie_at_any_depth_and_their_classes_are_in_their_names(tmp_path: Path) -> None:
    for name in ("cat_1.png", "sub/cat_0.png", "sub/dog_1_of_2.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    found = images(open_flat(tmp_path, "adm"))
    assert list(found) == ["cat/cat_1", "cat/sub/cat_0", "dog/sub/dog_1_of_2"]
    assert list(images(open_flat(tmp_path, "flat"))) == [
        "no_class/cat_1",
        "no_class/sub/cat_0",
        "no_class/sub/dog_1_of_2",
    ]


@pytest.mark.parametrize("kind", ["folders.tar", "folders.zip"])
def test_archives_of_class_folders_without_a_top_folder(kind: str, tmp_path: Path) -> None:
    files = [("a/1.png", b"a1"), ("b/1.png", b"b1"), ("b/.c/2.png", b""), ("README", b"text")]
    write = image_sets.make_tar if kind == "folders.tar" else image_sets.make_zip
    source = open_archive(write(tmp_path / f"train{kind[-4:]}", files), kind)
    assert images(source) == {"a/1": b"a1", "b/1": b"b1"} and source.classes == ["a", "b"]
    assert (source.ignored.num, source.ignored.num_images) == (2, 0)


@pytest.mark.parametrize("top", ["train_blurred", "./train_blurred", "."])
def test_gzipped_tars_with_any_top_folder(top: str, copy: Path) -> None:
    found = images(open_gzipped(image_sets.write_gzipped(copy, top)))
    assert dict(sorted(found.items())) == expected(copy)


def test_a_gzipped_tar_of_several_gzip_members(copy: Path) -> None:
    place = image_sets.write_gzipped(copy)
    data = gzip.decompress(place.read_bytes())
    place.write_bytes(gzip.compress(data[:70000]) + gzip.compress(data[70000:]))
    assert dict(sorted(images(open_gzipped(place)).items())) == expected(copy)


def test_stretches_with_bytes_are_small(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gzipped, "MOST_BYTES", 8000)
    parts = [stretch.items for stretch in open_all("tar.gz", copy).stretches()]
    sizes = [sum(item.size for item in part) for part in parts]
    assert all(size <= 8000 or len(part) == 1 for size, part in zip(sizes, parts, strict=True))
    assert all(a + part[0].size > 8000 for a, part in zip(sizes, parts[1:], strict=False))


def test_a_label_set_may_be_a_part_of_the_classes(copy: Path) -> None:
    files = [("a/b.c/x1.v2.cls", b"0"), ("a/b.c/x1.png", b"png"), ("a/b.c/x1.cls", b" 278\n")]
    source = open_webdataset(copy, [image_sets.make_tar(copy / "train-0.tar", files)])
    assert images(source) == {"class0278/x1": b"png"} and source.classes == ["class0278"]


def test_rows_without_a_path_are_named_for_the_shard(tmp_path: Path) -> None:
    place = tmp_path / "train-00007-of-00008.parquet"
    pq.write_table(image_sets.hub_table(), place, row_group_size=2)
    source = open_parquet(tmp_path, [place])
    stem = "train-00007-of-00008"
    assert images(source) == {
        f"class0000/{stem}_00000000": b"a",
        f"class0000/{stem}_00000001": b"b",
        f"class0278/{stem}_00000002": b"c",
    }


# --- reading -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [7, 16, 33])
def test_rows_are_read_in_any_batches(size: int, copy: Path) -> None:
    source = open_parquet(copy, image_sets.write_parquet(copy, row_group=40))
    items = [item for stretch in source.stretches() for item in stretch.items]
    batches = [items[i : i + size] for i in range(0, len(items), size)]
    read = itertools.chain.from_iterable(map(read_all, batches))
    assert {item.name: data for item, data in zip(items, read, strict=True)} == image_sets.tree(
        copy
    )


def test_rows_and_files_mixed(copy: Path) -> None:
    place = image_sets.write_parquet(copy)[0]
    rows = pq.read_table(place).column("image").to_pylist()
    file = copy / "file"
    file.write_bytes(b"0123456789")
    where: list[Where] = [
        Row(str(place), 0, 3),
        Row(str(place), 0, 4),
        Span(str(file), 2, 3),
        b"as it is",
    ]
    where += [Row(str(place), 0, 5), Row(str(place), 1, 6), Row(str(place), 0, 2), Span(str(file))]
    expected = [rows[3], rows[4], b"234", b"as it is", rows[5], rows[22], rows[2], b"0123456789"]
    read = read_all([Item("", place) for place in where])
    assert read == [e if isinstance(e, bytes) else e["bytes"] for e in expected]


def test_files_that_are_gone_or_short_are_errors_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(b"0123")
    gone, short = Span(str(tmp_path / "gone")), Span(str(tmp_path / "short"), 2, 3)
    whole = Span(str(tmp_path / "short"), 1, 3)
    first, second, third = read_all([Item("", where) for where in (gone, short, whole)])
    assert isinstance(first, FileNotFoundError) and third == b"123"
    assert isinstance(second, OSError) and "ends within the image" in str(second)
