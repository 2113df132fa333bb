"""Image sets packaged as arrays: the official downsampled ImageNet, and CIFAR-10."""

import io
import pickle
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.base.errors import UserError
from pipeline.images.sources import synsets
from pipeline.images.sources.base import Item, Source
from pipeline.images.sources.batches import open_batches
from pipeline.images.sources.cifar import open_cifar
from tests.array_sets import (
    pack_cifar,
    planar,
    python2_batch,
    write_batch,
    write_batches,
    write_cifar,
)

LABELS = {"n01440764": 449, "n02119789": 1, "n03255030": 1000}  # of the devkit
RESOLUTION = 4  # px
BOTH = pytest.mark.parametrize("npz", [False, True], ids=["pickle", "npz"])


def draw(names: list[str], count: int, side: int) -> dict[str, np.ndarray]:
    """Random images uint8 (count,side,side,3) of each class."""
    rng = np.random.default_rng(7)
    return {name: rng.integers(0, 256, (count, side, side, 3), np.uint8) for name in names}


def items_of(source: Source) -> list[Item]:
    return [item for stretch in source.stretches() for item in stretch.items]


def pixels_by_class(items: list[Item]) -> dict[str, set[bytes]]:
    result: dict[str, set[bytes]] = {}
    for item in items:
        assert isinstance(item.where, np.ndarray)
        result.setdefault(item.name.partition("/")[0], set()).add(item.where.tobytes())
    return result


def same_pixels(items: list[Item], images: dict[str, np.ndarray]) -> bool:
    """Whether each class has just the images it was written with."""
    return pixels_by_class(items) == {k: {i.tobytes() for i in v} for k, v in images.items()}


# --- downsampled ImageNet ----------------------------------------------------------------------


def test_labels_of_the_devkit() -> None:
    order = synsets.devkit_order()
    assert {synset: order.index(synset) + 1 for synset in LABELS} == LABELS
    assert len(set(order)) == 1000


@BOTH
def test_batches(tmp_path: Path, npz: bool) -> None:
    images = draw(list(LABELS), 400, RESOLUTION)
    files = write_batches(tmp_path, images, LABELS, 2, npz)
    source = open_batches(tmp_path, files, RESOLUTION)
    assert (source.kind, source.made, source.ordered) == ("batches", (RESOLUTION, "box"), False)
    assert source.classes == sorted(LABELS) and source.num_images == 1200
    stretches = list(source.stretches())
    assert [len(stretch.items) for stretch in stretches] == [512, 88, 512, 88]
    assert len({stretch.name for stretch in stretches}) == 4
    items = items_of(source)
    assert len({item.name for item in items}) == 1200
    assert same_pixels(items, images)
    shapes = {np.shape(item.where) for item in items}  # type: ignore[arg-type]
    assert shapes == {(RESOLUTION, RESOLUTION, 3)}


def test_both_packagings_are_the_same(tmp_path: Path) -> None:
    images = draw(list(LABELS), 5, RESOLUTION)
    sources = []
    for npz in (False, True):
        files = write_batches(tmp_path / str(npz), images, LABELS, 3, npz)
        sources.append(open_batches(tmp_path, files[::-1], RESOLUTION))
    for one, other in zip(*map(items_of, sources), strict=True):
        assert one.name == other.name
        np.testing.assert_array_equal(one.where, other.where)


def test_names_and_planes(tmp_path: Path) -> None:
    row = np.repeat(np.array([10, 20, 30], np.uint8), 4)  # red, green and blue of 2x2 px
    row[1] = 11  # red, first row, second column
    batch = {"data": row[None], "labels": [449], "mean": row.astype(float)}
    file = write_batch(tmp_path / "train_data_batch_1", batch, npz=False)
    (item,) = items_of(open_batches(tmp_path, [file], 2))
    assert item.name == "n01440764/batch01_000000"
    np.testing.assert_array_equal(
        item.where, [[[10, 20, 30], [11, 20, 30]], [[10, 20, 30], [10, 20, 30]]]
    )


def test_opening_an_npz_leaves_its_pixels_alone(tmp_path: Path) -> None:
    files = write_batches(tmp_path, draw(list(LABELS), 400, RESOLUTION), LABELS, 1, npz=True)
    content = bytearray(files[0].read_bytes())
    content[40_000] ^= 255  # among the pixels, which come first
    files[0].write_bytes(content)
    source = open_batches(tmp_path, files, RESOLUTION)
    assert source.num_images == 1200
    with pytest.raises(UserError, match="CRC"):
        list(source.stretches())


def test_a_kept_stretch_does_not_keep_the_file(tmp_path: Path) -> None:
    files = write_batches(tmp_path, draw(list(LABELS), 400, RESOLUTION), LABELS, 1, npz=False)
    stretch = next(open_batches(tmp_path, files, RESOLUTION).stretches())
    image = stretch.items[0].where
    assert isinstance(image, np.ndarray) and image.base is not None
    assert image.base.nbytes == 512 * 3 * RESOLUTION**2


def good_batch(**other: Any) -> dict[str, Any]:
    rows = planar(draw(["x"], 3, RESOLUTION)["x"])
    return {"data": rows, "labels": [1, 449, 1000], "mean": rows.mean(axis=0)} | other


ROWS = good_batch()["data"]


@BOTH
@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"data": ROWS.astype(np.int16)}, r"shape \(3, 48\) and type int16"),
        ({"data": ROWS.reshape(3, 3, 4, 4)}, r"shape \(3, 3, 4, 4\)"),
        ({"data": ROWS[:, :47]}, r"shape \(3, 47\)"),
        ({"data": ROWS[:, :0]}, r"shape \(3, 0\)"),
        ({"data": ROWS[:, :12]}, "images of 2x2 px, not of 4 px: set data.resolution=2"),
        ({"data": np.zeros((3, 3 * 64 * 64), np.uint8)}, "set data.resolution=64"),
        ({"labels": [1, 2]}, "one label for each of its 3 images"),
        ({"labels": [[1], [2], [3]]}, r"the label \[1\], which is not one of 1 … 1000"),
        ({"labels": 5}, "one label for each"),
        ({"labels": [0, 1, 2]}, "the label 0,"),
        ({"labels": [1, 1001, 2]}, "the label 1001,"),
        ({"labels": [1, -1, 2]}, "the label -1,"),
        ({"labels": [1.0, 2.0, 3.0]}, "the label 1.0,"),
        ({"labels": [True, True, True]}, "the label True,"),
        ({"labels": ["1", "2", "3"]}, "label '1'|dtype"),
    ],
)
def test_bad_batches(tmp_path: Path, npz: bool, other: dict[str, Any], message: str) -> None:
    file = write_batch(tmp_path / "train_data_batch_1", good_batch(**other), npz)
    with pytest.raises(UserError, match=message) as error:
        open_batches(tmp_path, [file], RESOLUTION)
    assert str(file) in str(error.value)


@BOTH
@pytest.mark.parametrize("member", ["data", "labels"])
def test_missing_members(tmp_path: Path, npz: bool, member: str) -> None:
    batch = good_batch()
    del batch[member]
    file = write_batch(tmp_path / "train_data_batch_1", batch, npz)
    with pytest.raises(UserError, match=member):
        open_batches(tmp_path, [file], RESOLUTION)


@BOTH
def test_truncated_batches(tmp_path: Path, npz: bool) -> None:
    file = write_batch(tmp_path / "train_data_batch_1", good_batch(), npz)
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(UserError, match=f"{file} is damaged"):
        open_batches(tmp_path, [file], RESOLUTION)


@pytest.mark.parametrize("content", [[1, 2], "text", {"data": 5, "labels": []}, None])
def test_pickles_of_something_else(tmp_path: Path, content: Any) -> None:
    file = tmp_path / "train_data_batch_1"
    file.write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match=f"{file} has no "):
        open_batches(tmp_path, [file], RESOLUTION)


def test_npz_with_objects(tmp_path: Path) -> None:
    batch = good_batch(labels=np.array([{}, 1, 2], dtype=object))
    file = write_batch(tmp_path / "train_data_batch_1", batch, npz=True)
    with pytest.raises(UserError, match="allow_pickle"):
        open_batches(tmp_path, [file], RESOLUTION)


def test_npz_that_claims_much(tmp_path: Path) -> None:
    header = io.BytesIO()
    claim = {"descr": "<i8", "fortran_order": False, "shape": (10**15,)}
    np.lib.format.write_array_header_1_0(header, claim)
    file = write_batch(tmp_path / "train_data_batch_1", {"data": ROWS}, npz=True)
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("labels.npy", header.getvalue())
    with pytest.raises(UserError, match="damaged"):
        open_batches(tmp_path, [file], RESOLUTION)


def test_hostile_batch(tmp_path: Path) -> None:
    file = tmp_path / "train_data_batch_1"
    file.write_bytes(f"cos\nmkdir\n(S'{tmp_path}/x'\ntR.".encode())
    with pytest.raises(UserError, match="holds os.mkdir"):
        open_batches(tmp_path, [file], RESOLUTION)
    assert not (tmp_path / "x").exists()


def test_no_images(tmp_path: Path) -> None:
    file = write_batch(tmp_path / "train_data_batch_1", good_batch(data=ROWS[:0], labels=[]), False)
    for files in ([], [file]):
        with pytest.raises(UserError, match="missing|no images"):
            open_batches(tmp_path, files, RESOLUTION)


def test_gaps_doubles_and_strange_names(tmp_path: Path) -> None:
    images = draw(list(LABELS), 5, RESOLUTION)
    files = write_batches(tmp_path, images, LABELS, 5, npz=False)
    with pytest.raises(UserError, match=r"\(train_data_batch_1, train_data_batch_4\): get them"):
        open_batches(tmp_path, [files[1], files[2], files[4]], RESOLUTION)
    twice = write_batches(tmp_path, images, LABELS, 5, npz=True)[2]
    with pytest.raises(UserError, match=f"{files[2]} and {twice} are the same batch"):
        open_batches(tmp_path, [*files, twice], RESOLUTION)
    for name in ("train_data_batch_0", "train_data_batch_1.zip", "train_data_batch_01"):
        with pytest.raises(UserError, match=f"{name} is neither"):
            open_batches(tmp_path, [*files, tmp_path / name], RESOLUTION)


# --- CIFAR-10 ----------------------------------------------------------------------------------

CLASSES = ["airplane", "frog", "automobile"]  # in the order of the labels, not of the alphabet


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "tar.gz"])
def test_cifar(tmp_path: Path, packed: bool) -> None:
    images = draw(CLASSES, 9, 32)
    place = write_cifar(tmp_path, images, packed)
    assert place.name == ("cifar-10-python.tar.gz" if packed else "cifar-10-batches-py")
    source = open_cifar(place)
    assert (source.kind, source.made, source.ordered) == ("cifar", None, False)
    assert source.classes == sorted(CLASSES) and source.num_images == 27
    assert [len(s.items) for s in source.stretches()] == [6, 6, 5, 5, 5]
    items = items_of(source)
    assert same_pixels(items, images)
    assert [item.name for item in items] == [item.name for item in items_of(source)]
    by_name = {item.name: item.where for item in items}
    assert len(by_name) == 27
    np.testing.assert_array_equal(by_name["frog/frog_3.png"], images["frog"][3])


def test_cifar_of_python_2(tmp_path: Path) -> None:
    folder = write_cifar(tmp_path, draw(CLASSES, 5, 32), packed=False)
    image = draw(["x"], 1, 32)["x"]
    content = python2_batch(planar(image), [1], ["rana_s_000001.png"])
    (folder / "data_batch_1").write_bytes(content)
    (folder / "batches.meta").write_bytes(
        b"\x80\x02}U\x0blabel_names](U\x08airplaneU\x04frogU\x0aautomobilees."
    )
    item = items_of(open_cifar(folder))[0]
    assert item.name == "frog/rana_s_000001.png"
    np.testing.assert_array_equal(item.where, image[0])


def test_cifar_with_a_name_twice(tmp_path: Path) -> None:
    folder = write_cifar(tmp_path, draw(CLASSES, 5, 32), packed=False)
    batch = pickle.loads((folder / "data_batch_1").read_bytes())
    batch[b"filenames"] = [b"same.png"] * len(batch[b"labels"])
    batch[b"labels"] = [0] * len(batch[b"labels"])
    (folder / "data_batch_1").write_bytes(pickle.dumps(batch, 2))
    names = [item.name for item in items_of(open_cifar(folder))]
    assert names[:3] == ["airplane/same.png", "airplane/same.png~2", "airplane/same.png~3"]


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "tar.gz"])
def test_incomplete_cifar(tmp_path: Path, packed: bool) -> None:
    folder = write_cifar(tmp_path, draw(CLASSES, 5, 32), packed=False)
    for name in ("data_batch_2", "batches.meta"):
        (folder / name).unlink()
    place = pack_cifar(folder) if packed else folder
    with pytest.raises(UserError, match=f"{place} lacks data_batch_2, batches.meta: get"):
        open_cifar(place)


@pytest.mark.parametrize(
    ("name", "other", "message"),
    [
        ("data_batch_3", {b"labels": [0, 1, 3]}, "the label 3, which is not one of 0 … 2"),
        ("data_batch_3", {b"labels": [0, 1]}, "one label for each of its 3 images"),
        ("data_batch_3", {b"labels": None}, "one label for each"),
        ("data_batch_3", {b"data": np.zeros((3, 48), np.uint8)}, "no data uint8"),
        ("data_batch_3", {b"data": np.zeros((3, 3072), np.int64)}, "no data uint8"),
        ("data_batch_3", {b"data": None}, "no data uint8"),
        ("data_batch_3", {b"filenames": [b"a", b"b"]}, "one plain name in filenames for each"),
        ("data_batch_3", {b"filenames": [b"a", b"b", b"../../c"]}, "plain name"),
        ("data_batch_3", {b"filenames": [b"a", b"b", b".."]}, "plain name"),
        ("data_batch_3", {b"filenames": [b"a", b"b", 3]}, "plain name"),
        ("batches.meta", {b"label_names": [b"a", b"b", b"a"]}, "label_names"),
        ("batches.meta", {b"label_names": [b"a", b"b", b"c/d"]}, "label_names"),
        ("batches.meta", {b"label_names": 3}, "label_names"),
        ("batches.meta", {b"label_names": [b"a", b"b", b"c", b"d"]}, "1 classes .* empty"),
    ],
)
def test_bad_cifar(tmp_path: Path, name: str, other: dict[bytes, Any], message: str) -> None:
    folder = write_cifar(tmp_path, draw(CLASSES, 5, 32), packed=False)
    batch = pickle.loads((folder / name).read_bytes())
    (folder / name).write_bytes(pickle.dumps(batch | other, 2))
    with pytest.raises(UserError, match=message) as error:
        open_cifar(folder)
    assert str(folder) in str(error.value)


def test_hostile_cifar(tmp_path: Path) -> None:
    folder = write_cifar(tmp_path, draw(CLASSES, 5, 32), packed=False)
    (folder / "data_batch_4").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(UserError, match="data_batch_4 holds os.system"):
        open_cifar(pack_cifar(folder))


def link(member: tarfile.TarInfo) -> None:
    member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"


def hard_link(member: tarfile.TarInfo) -> None:
    member.type, member.linkname = tarfile.LNKTYPE, "cifar-10-batches-py/data_batch_1"


def device(member: tarfile.TarInfo) -> None:
    member.type = tarfile.CHRTYPE


def absolute(member: tarfile.TarInfo) -> None:
    member.name = "/data_batch_1"


def upwards(member: tarfile.TarInfo) -> None:
    member.name = "cifar-10-batches-py/../data_batch_1"


def large(member: tarfile.TarInfo) -> None:
    member.size = 201 * 2**20


@pytest.mark.parametrize("change", [link, hard_link, device, absolute, upwards, large])
def test_strange_members(tmp_path: Path, change: Any) -> None:
    place = write_cifar(tmp_path, draw(CLASSES, 5, 32), packed=True)
    with tarfile.open(place) as archive:
        members = [(member, archive.extractfile(member)) for member in archive]
        with tarfile.open(tmp_path / "changed.tar.gz", "w:gz") as changed:
            for member, content in members:
                changed.addfile(member, content)
            member = tarfile.TarInfo("cifar-10-batches-py/readme.html")
            change(member)
            changed.addfile(member)
    with pytest.raises(UserError, match=f"holds the member '{member.name}', which is"):
        open_cifar(tmp_path / "changed.tar.gz")


def test_member_twice(tmp_path: Path) -> None:
    place = write_cifar(tmp_path, draw(CLASSES, 5, 32), packed=True)
    with tarfile.open(place) as archive, tarfile.open(tmp_path / "x.tar.gz", "w:gz") as twice:
        for member in [*archive, archive.getmember("cifar-10-batches-py/data_batch_5")]:
            twice.addfile(member, archive.extractfile(member))
    with pytest.raises(UserError, match="data_batch_5 twice"):
        open_cifar(tmp_path / "x.tar.gz")


def test_every_truncated_archive_is_noticed(tmp_path: Path) -> None:
    place = write_cifar(tmp_path, draw(CLASSES, 5, 32), packed=True)
    content = place.read_bytes()
    for size in range(0, len(content) - 64, 997):
        place.write_bytes(content[:size])
        with pytest.raises(UserError):
            open_cifar(place)


def test_damaged_archive(tmp_path: Path) -> None:
    place = write_cifar(tmp_path, draw(CLASSES, 5, 32), packed=True)
    content = bytearray(place.read_bytes())
    for at in range(20, len(content), 499):
        content[at] ^= 255
    place.write_bytes(content)
    with pytest.raises(UserError):
        open_cifar(place)
