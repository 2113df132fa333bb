"""Results are readable by those whom the umask allows, whatever library wrote them."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pipeline.base.files import atomic, write_json
from pipeline.training.weights_file import WeightsAbout, save_weights


@pytest.fixture(params=[0o022, 0o027, 0o002])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def write_weights(path: Path) -> None:
    save_weights(path, {"w": torch.zeros(2)}, WeightsAbout(config={}, record={}))


@pytest.mark.parametrize("name", ["weights.safetensors", "about.json"])
def test_files_follow_the_umask_and_keep_a_mode(name: str, umask: int, tmp_path: Path) -> None:
    def write(path: Path) -> None:
        write_weights(path) if path.suffix == ".safetensors" else write_json(path, {})

    path = tmp_path / name
    write(path)
    assert mode(path) == 0o666 & ~umask
    path.chmod(0o640)  # as a person wants it
    write(path)
    assert mode(path) == 0o640
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_a_file_that_no_writer_could_read_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    path.chmod(0o444)
    with atomic(path) as temporary:
        temporary.write_text("new")
    assert (path.read_text(), mode(path)) == ("new", 0o444)
