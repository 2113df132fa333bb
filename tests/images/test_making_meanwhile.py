"""Packs in the making: on a network file system, beside another process, after a kill, changed."""

import os
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.base.errors import UserError
from pipeline.base.locks import locked
from pipeline.images import assemble, checks, workers
from pipeline.images import make as making
from pipeline.images.spool import Spool
from tests.test_downsample import PACK, make, pack_of, same

GREYS = {"a/0": 10, "a/1": 20, "b/0": 30}


def grey(file: Path, level: int, side: int = 9) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (side, side), (level, level, level)).save(file)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three images of two classes."""
    for name, level in GREYS.items():
        grey(tmp_path / "train" / f"{name}.png", level)
    return tmp_path


def files_of(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_nfs_keeps_the_lock_that_is_open(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS renames a file that is removed while it is open, so that its folder is not empty."""
    unlink = os.unlink

    def rename_if_lock(path: Any, *, dir_fd: int | None = None) -> None:
        if Path(path).name != "lock":
            return unlink(path, dir_fd=dir_fd)
        return os.rename(path, ".nfs01", src_dir_fd=dir_fd, dst_dir_fd=dir_fd)

    monkeypatch.setattr(os, "unlink", rename_if_lock)
    assert make(root)[1][:, 0, 0, 0].tolist() == [10, 20, 30]


def no_decoding(*_: Any) -> Any:
    raise AssertionError("the pack is made again")


def test_a_pack_that_another_process_moves_meanwhile(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make(root)
    pack, folder = pack_of(root), pack_of(root) / ".making"
    folder.mkdir()
    (pack / "manifest.json").rename(folder / "manifest.json")

    def locked_after_the_other(making_folder: Path) -> Any:
        (making_folder / "manifest.json").rename(pack / "manifest.json")
        making_folder.rmdir()
        return locked(making_folder)

    monkeypatch.setattr(making, "locked", locked_after_the_other)
    monkeypatch.setattr(workers, "decode_all", no_decoding)
    assert same(make(root), first) and files_of(pack) == PACK


def test_a_pack_that_another_process_makes_while_the_images_are_listed(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(root, f"data.pack_dir={root}/other")
    open_source = making.open_source

    def list_slowly(config: Any) -> Any:
        shutil.copytree(root / "other" / "train_8" / "box", pack_of(root))
        return open_source(config)

    monkeypatch.setattr(making, "open_source", list_slowly)
    monkeypatch.setattr(workers, "decode_all", no_decoding)
    assert make(root)[0]["num_images"] == 3 and files_of(pack_of(root)) == PACK


@pytest.mark.parametrize("layout", ["folders", "flat"])
def test_an_image_of_another_size_is_read_again(
    tmp_path: Path, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("a/0", "b/0") if layout == "folders" else ("0", "1")
    first, second = (tmp_path / "train" / f"{name}.png" for name in names)
    grey(first, 10)
    grey(second, 20)
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(making, "assemble", lambda *_: exit("killed"))
        make(tmp_path, f"data.layout={layout}")
    grey(first, 200, side=33)
    assert make(tmp_path, f"data.layout={layout}")[1][:, 0, 0, 0].tolist() == [200, 20]


def test_what_a_kill_left_counts_as_free_space(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = pack_of(root) / ".making"
    folder.mkdir(parents=True)
    left = [folder / ".images.npy.1.tmp", folder / "images.npy"]
    for file in left:
        file.write_bytes(np.random.default_rng(0).bytes(8192))
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(free=5 * 8 * 8 * 3))
    checks.check_space(pack_of(root), 5, 8, ordered=False)
    Spool(folder, 8, {}).close()
    assert not any(file.exists() for file in left)


def test_files_that_another_process_moves_away_take_no_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rows.npy").write_bytes(bytes(8192))
    there = checks.disk_bytes(tmp_path)
    gone = [tmp_path / "rows.npy", tmp_path / ".journal.1.tmp"]
    monkeypatch.setattr(Path, "iterdir", lambda _: iter(gone))
    assert there == checks.disk_bytes(tmp_path) > 0
    monkeypatch.undo()
    assert checks.disk_bytes(tmp_path / "gone") == 0


def test_the_name_that_is_there_twice_need_not_be_utf8() -> None:
    names = np.array([b"caf\xe9"] * 2), np.array([b"0.png"] * 2)
    with pytest.raises(UserError, match="holds caf\udce9/0.png twice"):
        assemble.check_unique(assemble.Finished(*names, np.ones(2, bool)), Path("train.tar"))


def test_what_another_user_left_in_the_making(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = pack_of(root) / ".making"
    folder.mkdir(parents=True)
    monkeypatch.setattr(os, "access", lambda path, _: Path(path) != folder)
    with pytest.raises(UserError, match=r"\.making is not a folder that may be written"):
        make(root)
