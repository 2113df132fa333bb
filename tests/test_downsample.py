"""Step downsample: pixels against Pillow, sources against each other, and every bad input."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline import downsample as step
from pipeline.base.errors import UserError
from pipeline.bench.photos import write_photos
from pipeline.config import paths
from pipeline.images.sources import synsets
from tests.array_sets import write_batches, write_cifar
from tests.conftest import ROOT, resolved
from tests.images.test_resample import rows_first


def words(root: Path, *more: str) -> list[str]:
    """Words for a pack of the image set in `root`, 8 px, decoded in one process."""
    places = [f"data.dir={root}", f"data.pack_dir={root}/packs"]
    return ["experiment=tiny", "data.source=auto", *places, "runtime.workers=1", *more]


def make(root: Path, *more: str) -> tuple[dict, np.ndarray, np.ndarray, dict]:
    """Run the step in this process: record, images, labels, manifest."""
    config = resolved(*words(root, *more))
    step.downsample(config, root / "record.json")
    pack = paths.pack_folder(config)
    record, manifest = (
        json.loads(path.read_text()) for path in (root / "record.json", pack / "manifest.json")
    )
    return record, np.load(pack / "images.npy"), np.load(pack / "labels.npy"), manifest


def pack_of(root: Path) -> Path:
    return root / "packs" / "train_8" / "box"


def start(root: Path, *more: str, **environment: str) -> subprocess.Popen[str]:
    """The step as a user starts it, with two workers."""
    more = ("runtime.workers=2", "runtime.progress_seconds=0", *more)
    command = [sys.executable, "-m", "pipeline.downsample", *words(root, *more)]
    return subprocess.Popen(
        [*command, f"out={root}/record.json"],
        cwd=ROOT,
        env=os.environ | environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


PACK = {"images.npy", "labels.npy", "manifest.json"}
MAKING = {"header.json", "rows.npy", "journal.jsonl", "lock"}


def assert_no_pack(root: Path) -> None:
    """No file of a pack and no record: at most what a run can go on from."""
    files = {p for p in (root / "packs").rglob("*") if p.is_file()}
    assert {p.name for p in files} <= MAKING and {p.parent.name for p in files} <= {".making"}
    assert not (root / "record.json").exists()


def same(one: tuple, other: tuple) -> bool:
    """Whether two packs have the same record, images and labels."""
    return one[0] == other[0] and all((one[k] == other[k]).all() for k in (1, 2))


def one_sentence(error: str) -> bool:
    return error.startswith("error: ") and error.count("\n") == 1 and "Traceback" not in error


def make_tar(root: Path) -> None:
    """ILSVRC2012_img_train.tar of the tree in `root`, which goes; GNU tar makes all of it."""
    train = root / "train"
    for folder in sorted(train.iterdir(), reverse=True):
        files = sorted((p.name for p in folder.iterdir()), reverse=True)
        subprocess.run(["tar", "cf", f"{folder}.tar", "-C", folder, *files], check=True)
    tars = [p.name for p in train.glob("*.tar")]
    subprocess.run(["tar", "cf", root / "ILSVRC2012_img_train.tar", "-C", train, *tars], check=True)
    shutil.rmtree(train)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    write_photos(tmp_path, per_class=6, size=48)
    return tmp_path


# --- packs ---------------------------------------------------------------------------------------


def test_rows_labels_and_record(photos: Path) -> None:
    record, images, labels, manifest = make(photos)
    files = sorted((photos / "train").rglob("*.JPEG"), key=lambda p: (p.parent.name, p.name))
    classes = sorted({file.parent.name for file in files})
    expected = [
        np.asarray(rows_first(Image.open(f).convert("RGB"), (8, 8), Image.Resampling.BOX))
        for f in files
    ]
    np.testing.assert_array_equal(images, expected)
    assert labels.tolist() == [classes.index(file.parent.name) for file in files]
    assert labels.dtype == np.int64
    hashes = {
        n: hashlib.sha256(a.tobytes()).hexdigest()
        for n, a in (("images", images), ("labels", labels))
    }
    assert record == {
        "source": "train",
        "resolution": 8,
        "recipe": "box",
        "num_images": len(files),
        "classes": classes,
        "per_class": {name: int((labels == k).sum()) for k, name in enumerate(classes)},
        "sha256": hashes,
    }
    assert manifest.items() >= record.items()
    assert manifest["per_class"] == dict.fromkeys(classes, 6)


@pytest.mark.slow
def test_bytes_do_not_depend_on_workers_or_their_start(tmp_path: Path) -> None:
    write_photos(tmp_path, per_class=20, size=48)  # more than wait in the queue at a time
    packs = []
    (deep := tmp_path / ("long" * 20)).mkdir()  # in which no socket can be
    ways = ["workers=1", *(f"start_method={m}" for m in ("spawn", "fork", "forkserver"))]
    for how in [*ways, "workers=2"]:
        variables = {"TMPDIR": str(deep)} if how == "workers=2" else {}
        run = start(tmp_path, f"runtime.{how}", f"data.pack_dir={tmp_path}/{how}", **variables)
        output, error = run.communicate()
        assert run.returncode == 0, error
        assert ("spawn, since" in output) == bool(variables), output
        folder = tmp_path / how / "train_8" / "box"
        packs.append([(folder / name).read_bytes() for name in sorted(PACK)])
    assert all(pack == packs[0] for pack in packs)


def test_shapes_are_made_and_their_oddities_counted(tmp_path: Path) -> None:
    make_words = ["experiment=tiny", f"data.pack_dir={tmp_path}", "data.resolution=16"]
    step.downsample(resolved(*make_words), tmp_path / "record.json")
    manifest = json.loads((tmp_path / "shapes_tiny_16/box/manifest.json").read_text())
    assert manifest["counts"].pop("alpha") == 0
    assert manifest["counts"] == {"grey": 1, "cmyk": 1, "exif_rotated": 1, "misnamed": 1}
    assert manifest["num_images"] == 240 and set(manifest["per_class"].values()) == {24}
    assert (tmp_path / "shapes_tiny" / "ILSVRC2012_img_train.tar").is_file()
    assert manifest["sizes"]["short_side"] <= 256 and not manifest["resized"]  # drawn so


# --- a pack that is there ----------------------------------------------------------------------


def test_a_whole_pack_is_left_alone(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = make(photos)[0]
    times = {p: p.stat().st_mtime_ns for p in pack_of(photos).iterdir()}
    (photos / "record.json").unlink()
    shutil.rmtree(photos / "train")  # the images are not needed any more
    capsys.readouterr()
    assert make(photos)[0] == record
    assert capsys.readouterr().out.count("\n") == 1
    assert {p: p.stat().st_mtime_ns for p in pack_of(photos).iterdir()} == times
    with pytest.raises(UserError, match=r"42 images, but data\.expected_images=41"):
        make(photos, "data.expected_images=41")


@pytest.mark.parametrize("file", ["images.npy", "labels.npy", "manifest.json"])
@pytest.mark.parametrize("how", ["byte", "cut"])
def test_a_damaged_pack_is_made_again(
    photos: Path, file: str, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = make(photos)
    path = pack_of(photos) / file
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] if how == "cut" else b"?" + content[1:])
    again = make(photos)
    assert "is damaged" in capsys.readouterr().out
    assert again[0] == whole[0] and again[3] == whole[3]


def test_a_changed_pixel_is_noticed(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = make(photos)
    images = np.lib.format.open_memmap(pack_of(photos) / "images.npy", mode="r+")
    images[20, 3, 3, 1] ^= 1
    images.flush()
    assert (make(photos)[1] == whole[1]).all()
    assert "images.npy has another sha256" in capsys.readouterr().out


def test_another_pack_is_not_overwritten(photos: Path) -> None:
    make(photos)
    with pytest.raises(UserError, match="has resolution 8, not 16"):
        make(photos, f"data.path={pack_of(photos)}", "data.resolution=16")


def test_a_pack_of_another_order_is_kept_and_told(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = make(photos)[0]
    file = pack_of(photos) / "manifest.json"
    manifest = json.loads(file.read_text())
    assert manifest.pop("order") == "rows first"
    file.write_text(json.dumps(manifest))  # as versions wrote it that followed Pillow 13
    capsys.readouterr()
    assert make(photos)[0] == record
    assert "filtered the columns of tall images first, and is kept" in capsys.readouterr().out


# --- bad input ---------------------------------------------------------------------------------


def spoil(root: Path) -> None:
    """One file that is not an image, one cut short, and one link to nothing."""
    (root / "train/cat/cat_1.JPEG").write_bytes(b"no image")
    path = root / "train/retina/retina_3.JPEG"
    path.write_bytes(path.read_bytes()[:-400])
    (root / "train/rocket/gone.JPEG").symlink_to("nowhere")


def test_unreadable_images_are_all_named(photos: Path) -> None:
    spoil(photos)
    run = start(photos)
    error = run.communicate()[1]
    assert run.returncode == 2 and one_sentence(error)
    named = re.findall(r"\w+/\w+\.JPEG", error)
    assert named == ["cat/cat_1.JPEG", "retina/retina_3.JPEG", "rocket/gone.JPEG"]
    assert "downsample.allow_bad=3" in error
    assert_no_pack(photos)


def test_allowed_bad_images_are_left_out(photos: Path) -> None:
    _, before, labels_before, _ = make(photos)
    shutil.rmtree(photos / "packs")
    spoil(photos)
    _, images, labels, manifest = make(photos, "downsample.allow_bad=3")
    assert [b["name"] for b in manifest["left_out"]] == [
        "cat/cat_1.JPEG",
        "retina/retina_3.JPEG",
        "rocket/gone.JPEG",
    ]
    kept = np.delete(np.arange(42), [1 * 6 + 1, 4 * 6 + 3])  # the link is an extra
    np.testing.assert_array_equal(images, before[kept])
    np.testing.assert_array_equal(labels, labels_before[kept])
    assert manifest["per_class"]["cat"] == 5 and manifest["num_images"] == 40
    with pytest.raises(UserError, match=r"3 images of .* are unreadable: cat/cat_1\.JPEG"):
        make(photos)  # the pack is there, but the configuration allows none


def test_a_class_must_keep_an_image(photos: Path) -> None:
    for path in (photos / "train/cat").iterdir():
        path.write_bytes(b"")
    with pytest.raises(UserError, match="no readable image of cat"):
        make(photos, "downsample.allow_bad=6")


def add(root: Path, file: str) -> None:
    """A file named like an image that is not one: no sentence below may come from decoding it."""
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_bytes(b"no image")


TREES = {
    "is not in .*looked for train, ILSVRC/Data/CLS-LOC/train, ILSVRC2012_img_train.tar": [],
    "more than once: .*/train .data.source=train data.layout=folders.; .*CLS-LOC/train": [
        "train/a/1.JPEG",
        "ILSVRC/Data/CLS-LOC/train/a/1.JPEG",
    ],
    "holds no images": ["train/readme.txt", "train/a/readme.txt"],
    "1 classes of .* are empty .b.": ["train/a/1.JPEG", "train/b/.1.JPEG"],
    "belong to no class .2.JPEG.": ["train/a/1.JPEG", "train/2.JPEG"],
    "holds 1 images, but data.expected_images=7": ["train/a/1.JPEG"],
    "holds 2 classes, but data.expected_classes=1": [
        f"train/{c}/{i}.JPEG" for c, i in ("a1", "a2", "a3", "a4", "b1", "b2", "b3")
    ],
}


@pytest.mark.parametrize("sentence", TREES)
def test_bad_trees(tmp_path: Path, sentence: str) -> None:
    for file in TREES[sentence]:
        add(tmp_path, file)
    with pytest.raises(UserError, match=sentence):
        make(tmp_path, "data.expected_images=7", "data.expected_classes=1")
    assert_no_pack(tmp_path)


def test_other_files_are_counted(photos: Path) -> None:
    for file in ("train/notes.txt", "train/cat/list.csv", "train/cat/._cat_1.JPEG"):
        add(photos, file)
    assert make(photos)[3]["ignored"] == 3


def rebuild(root: Path, change: Callable[[tarfile.TarInfo], object]) -> None:
    """The tar again, after `change` of its third member's header."""
    path = root / "ILSVRC2012_img_train.tar"
    with tarfile.open(path) as old, tarfile.open(root / "new", "w") as new:
        for number, member in enumerate(old):
            content = old.extractfile(member)
            if number == 2:
                change(member)
            new.addfile(member, content if member.isreg() else None)
    (root / "new").rename(path)


def link(member: tarfile.TarInfo) -> None:
    member.type, member.linkname, member.size = tarfile.SYMTYPE, "/etc/passwd", 0


@pytest.mark.parametrize("name", ["../evil.tar", "/evil.tar", "a/../../evil.tar"])
def test_members_that_lead_elsewhere_are_refused(photos: Path, name: str) -> None:
    make_tar(photos)
    rebuild(photos, lambda member: setattr(member, "name", name))
    with pytest.raises(UserError, match=f"member '{re.escape(name)}'"):
        make(photos)


def test_bad_tars(photos: Path) -> None:
    make_tar(photos)
    path = photos / "ILSVRC2012_img_train.tar"
    good = path.read_bytes()
    rebuild(photos, link)
    with pytest.raises(UserError, match=r"holds the member '\w+.tar', which is a link"):
        make(photos)
    with tarfile.open(path) as archive:
        third = archive.getmembers()[2].offset_data
    damages = (
        good[: len(good) // 2],
        good[: third - 100],
        b"",
        b"no tar" * 1000,
        good[: third - 512] + b"?" * 512 + good[third:],
        good[:third] + b"?" + good[third + 1 :],
    )
    for content in damages:
        path.write_bytes(content)
        with pytest.raises(UserError, match="not a complete tar without compression"):
            make(photos)
    assert_no_pack(photos)
    path.write_bytes(good)
    subprocess.run(f"gzip -c {path} > {photos}/z && mv {photos}/z {path}", shell=True, check=True)
    with pytest.raises(UserError, match="not a complete tar without compression"):
        make(photos)


def test_missing_places_are_named(tmp_path: Path) -> None:
    for environment, sentence in (
        ({}, "IMAGENET_DIR is not set"),
        ({"IMAGENET_DIR": f"{tmp_path}/nowhere"}, "nowhere is not a folder"),
    ):
        run = start(tmp_path, "data.dir=null", **environment)
        error = run.communicate()[1]
        assert run.returncode == 2 and one_sentence(error) and sentence in error
    assert_no_pack(tmp_path)


# --- disks, processes and signals --------------------------------------------------------------


def test_a_full_disk_is_seen_before_the_start(photos: Path, small_disk: Path) -> None:
    for k in range(100):  # 42 + 100 images of 64 x 64 px need 1.7 MB
        os.link(photos / "train/cat/cat_0.JPEG", photos / f"train/cat/more_{k}.JPEG")
    run = start(photos, f"data.pack_dir={small_disk}", "data.resolution=64")
    error = run.communicate()[1]
    assert run.returncode == 2 and one_sentence(error)
    assert re.search(r"needs 1\.7 MB, but the disk of .* has 1\.0 MB free", error)
    assert not list(small_disk.iterdir()) and not (photos / "record.json").exists()


def test_folders_that_cannot_be_written_are_named(photos: Path, small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    for place in (small_disk, photos / "train/cat/cat_0.JPEG"):
        with pytest.raises(UserError, match=f"{place} is not a folder that may be written"):
            make(photos, f"data.pack_dir={place}")


# --- sources of pixels ----------------------------------------------------------------------------


@pytest.mark.parametrize("npz", [False, True])
def test_official_batches_get_the_labels_of_sorted_synsets(tmp_path: Path, npz: bool) -> None:
    rng = np.random.default_rng(0)
    order = synsets.devkit_order()
    names = ["n01440764", "n02119789", "n15075141"]
    images = {n: rng.integers(0, 256, (9, 8, 8, 3), dtype=np.uint8) for n in names}
    labels = {n: order.index(n) + 1 for n in names}
    assert labels["n02119789"] == 1  # the devkit's first, not the sorted synsets' first
    write_batches(tmp_path, images, labels, 3, npz)
    record, found, given, manifest = make(tmp_path)
    assert record["classes"] == names and given.tolist() == [k for k in range(3) for _ in range(9)]
    for label, name in enumerate(names):
        rows = {row.tobytes() for row in found[given == label]}
        assert rows == {row.tobytes() for row in images[name]}
    assert manifest["kind"] == "batches"
    with pytest.raises(UserError, match=r"the recipe box, not at 8 px by adm"):
        make(tmp_path, "data.recipe=adm")
    with pytest.raises(UserError, match=r"data\.resolution=8"):
        make(tmp_path, "data.resolution=16")


def test_cifar10(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = {c: rng.integers(0, 256, (10, 32, 32, 3), dtype=np.uint8) for c in ("cat", "airplane")}
    write_cifar(tmp_path, images, packed=True)
    more = ("data.source=auto", "data.resolution=32")
    record, found, labels, _ = make(tmp_path, *more)
    assert record["source"] == "cifar10" and record["classes"] == ["airplane", "cat"]
    np.testing.assert_array_equal(found[labels == 0], images["airplane"])
    np.testing.assert_array_equal(found[labels == 1], images["cat"])
