"""Tensors out of TorchScript archives: equal to torch.jit.load, and nothing is run."""

import io
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pipeline.base.errors import UserError
from pipeline.scoring import torchscript


class Net(nn.Module):
    """Parameters, buffers, shared and strided tensors, and attributes that are none."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4), nn.Linear(4, 5).half())
        self.shared = self.layers[0].bias
        self.register_buffer("turned", torch.arange(12.0).view(3, 4).t())
        self.register_buffer("part", torch.arange(10)[3:7])
        self.register_buffer("flags", torch.tensor([True, False]))
        self.register_buffer("number", torch.tensor(2.5, dtype=torch.float64))
        self.sizes, self.name = [1, 2], "net"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * len(self.sizes)


def archive(module: nn.Module) -> bytes:
    """A scripted module as bytes."""
    stream = io.BytesIO()
    torch.jit.save(torch.jit.script(module), stream)
    return stream.getvalue()


def test_tensors_equal_those_of_torch() -> None:
    content = archive(Net())
    assert torchscript.is_archive(content)
    actual = torchscript.load_tensors(content, Path("x"))
    wanted = torch.jit.load(io.BytesIO(content)).state_dict()
    assert actual.keys() == wanted.keys()
    for name, value in wanted.items():
        assert actual[name].dtype == value.dtype
        torch.testing.assert_close(actual[name], value.detach(), rtol=0, atol=0)


def test_other_files_are_no_archives(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "plain.pth")
    assert not torchscript.is_archive((tmp_path / "plain.pth").read_bytes())
    assert not torchscript.is_archive(b"no zip")


def changed(content: bytes, pickled: bytes) -> bytes:
    """The archive with another pickle of modules."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(stream, "w") as new:
        for name in old.namelist():
            new.writestr(name, pickled if name.endswith("/data.pkl") else old.read(name))
    return stream.getvalue()


class Bomb:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_nothing_is_executed(tmp_path: Path) -> None:
    content = changed(archive(Net()), pickle.dumps(Bomb(tmp_path / "exploded"), 2))
    with pytest.raises(UserError, match=r"it names \w+\.mkdir"):
        torchscript.load_tensors(content, tmp_path / "x.pt")
    assert not (tmp_path / "exploded").exists()


def test_keys_that_are_not_plain_are_refused() -> None:
    """A tuple of tuples as a key: to hash it would end the process."""
    deep = b"\x80\x02})" + b"\x85" * 500_000 + b"K\x01s."
    with pytest.raises(UserError, match=r"builtins.tuple as a key"):
        torchscript.load_tensors(changed(archive(Net()), deep), Path("x"))


@pytest.mark.parametrize("cut", [0, 7, 40])
def test_damaged_trees_are_refused(cut: int) -> None:
    content = archive(Net())
    with zipfile.ZipFile(io.BytesIO(content)) as old:
        (name,) = (n for n in old.namelist() if n.endswith("/data.pkl"))
        pickled = old.read(name)
    with pytest.raises(UserError, match="not a TorchScript archive of plain tensors"):
        torchscript.load_tensors(changed(content, pickled[:cut]), Path("x"))


def test_a_tensor_that_claims_more_than_there_is_is_refused() -> None:
    with pytest.raises(ValueError, match="has 4 values"):
        torchscript._tensor(torch.ones(4), 0, (10**6, 10**6), (0, 0))
