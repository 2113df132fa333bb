"""A pack that is there is compared with the image set at hand by a cheap listing."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline import downsample as step
from pipeline.base.errors import UserError
from pipeline.bench.photos import write_photos
from tests.conftest import resolved
from tests.test_downsample import make, make_tar, pack_of


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """An image set of 42 files in 7 classes, and its pack."""
    write_photos(tmp_path, per_class=6, size=16)
    make(tmp_path)
    return tmp_path


def add_an_image(root: Path) -> None:
    shutil.copy(root / "train/cat/cat_1.JPEG", root / "train/cat/cat_9.JPEG")


def take_an_image(root: Path) -> None:
    (root / "train/cat/cat_1.JPEG").unlink()


def rename_an_image(root: Path) -> None:
    (root / "train/cat/cat_1.JPEG").rename(root / "train/cat/cat_9.JPEG")


def rename_a_class(root: Path) -> None:
    (root / "train/cat").rename(root / "train/puma")


def write_an_image_anew(root: Path) -> None:
    with (root / "train/cat/cat_1.JPEG").open("ab") as file:
        file.write(b"x")


CHANGES = {
    add_an_image: r"43 files instead of 42; [\d,]+ bytes instead of [\d,]+; other file names",
    take_an_image: "41 files instead of 42",
    rename_an_image: r"\(other file names\)",
    rename_a_class: r"\(other file names\)",
    write_an_image_anew: r"\([\d,]+ bytes instead of [\d,]+\)",
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_set_is_told_by_what_changed(packed: Path, change: Callable) -> None:
    record = (packed / "record.json").read_bytes()
    change(packed)
    with pytest.raises(UserError, match=CHANGES[change]) as error:
        make(packed)
    for name in (str(pack_of(packed)), str(packed / "train"), "data.pack_dir"):
        assert name in str(error.value)
    assert (packed / "record.json").read_bytes() == record


def test_another_set_with_a_shared_pack_folder_is_told(packed: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    write_photos(other, per_class=5, size=16)
    with pytest.raises(UserError, match="35 files instead of 42"):
        make(other, f"data.pack_dir={packed}/packs")


def test_a_moved_copy_is_the_same_set(packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = packed / "elsewhere"
    shutil.copytree(packed / "train", copy / "ILSVRC/Data/CLS-LOC/train")
    os.utime(copy / "ILSVRC/Data/CLS-LOC/train/cat/cat_1.JPEG", (0, 0))
    (copy / "ILSVRC/Data/CLS-LOC/train/cat/Thumbs.db").write_bytes(b"no image")
    capsys.readouterr()
    before = make(packed)
    after = make(copy, f"data.pack_dir={packed}/packs")
    assert after[0] == before[0] and after[3] == before[3]
    assert capsys.readouterr().out.count("there and whole") == 2


def test_shards_and_archives_are_listed_too(packed: Path) -> None:
    shutil.rmtree(packed / "packs")
    make_tar(packed)
    manifest = make(packed)[3]
    assert manifest["listing"]["kind"] == "tar" and manifest["listing"]["num_files"] == 1
    make(packed)
    with (packed / "ILSVRC2012_img_train.tar").open("ab") as file:
        file.write(bytes(512))
    with pytest.raises(UserError, match=r"ILSVRC2012_img_train.tar \([\d,]+ bytes instead of"):
        make(packed)


def test_the_same_set_in_another_packaging_is_compared_by_its_counts(packed: Path) -> None:
    shutil.copytree(packed / "train", packed / "kept")
    make_tar(packed)
    make(packed)  # the pack of the folders serves
    (packed / "ILSVRC2012_img_train.tar").unlink()
    shutil.copytree(packed / "kept", packed / "train")
    shutil.rmtree(packed / "train/cat")
    make_tar(packed)
    with pytest.raises(UserError, match="other classes; 36 images instead of 42"):
        make(packed)


def test_an_older_manifest_has_no_listing_but_counts(packed: Path) -> None:
    file = pack_of(packed) / "manifest.json"
    manifest = json.loads(file.read_text())
    del manifest["listing"]
    file.write_text(json.dumps(manifest))
    make(packed)
    add_an_image(packed)
    with pytest.raises(UserError, match=r"\(43 images instead of 42\)"):
        make(packed)


def test_an_image_that_was_left_out_is_still_of_the_set(
    packed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(packed / "packs")
    (packed / "train/cat/cat_1.JPEG").unlink()
    (packed / "train/cat/cat_1.JPEG").symlink_to("nowhere")
    make(packed, "downsample.allow_bad=1")
    assert "there and whole" not in capsys.readouterr().out
    make(packed, "downsample.allow_bad=1")
    assert "there and whole" in capsys.readouterr().out


def test_the_drawn_set_is_not_listed(packed: Path) -> None:
    words = ("data.source=shapes_tiny", f"data.pack_dir={packed}/drawn")
    record = packed / "record.json"
    record.unlink()
    config = resolved("experiment=tiny", *words, "runtime.workers=1")
    step.downsample(config, record)
    step.downsample(config, record)
    file = next((packed / "drawn").rglob("manifest.json"))
    assert json.loads(file.read_text())["listing"] is None
