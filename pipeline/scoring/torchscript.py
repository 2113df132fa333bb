"""Tensors out of TorchScript archives, without running anything in them.

Some published weights are such an archive: a zip with code, a pickle of the module tree and one raw
record per tensor. torch.jit.load would compile the code and may run parts of it; here the pickle is
read with stand-ins for the modules, and every name that a tree of tensors does not need is refused.
Quantised and sparse tensors are not supported.
"""

import io
import math
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pipeline.base.errors import UserError
from pipeline.base.safe_pickle import Loader
from pipeline.interop.live_objects import STORAGES

# Functions that keep the list they are given.
KEEPERS = ("build_intlist", "build_doublelist", "build_boollist", "build_tensorlist")


def is_archive(content: bytes) -> bool:
    """Whether `content` is a TorchScript archive: a zip with a pickle of constants."""
    if not zipfile.is_zipfile(io.BytesIO(content)):
        return False
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def load_tensors(content: bytes, path: Path) -> dict[str, Tensor]:
    """The tensors of an archive (read from `path`) by dotted name, as a state dict has them.

    Raises UserError if it is damaged or holds anything except modules, plain values and tensors.
    """
    # The tree of modules
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            root = next(n for n in archive.namelist() if n.endswith("/data.pkl"))
            folder = root.removesuffix("data.pkl")
            tree = _Loader(io.BytesIO(archive.read(root)), archive, folder).load()
            return _named(tree, "")
    except Exception as error:  # a damaged pickle may raise anything
        raise UserError(
            f"weights {path} are not a TorchScript archive of plain tensors ({error}) and were not "
            "opened further: give the file that the network's authors published"
        ) from error


class _Call(NamedTuple):
    """A function that a pickle may call. A tuple: the pickle cannot set anything of it."""

    make: Callable[..., Any]

    def __call__(self, *args: Any) -> Any:
        return self.make(*args)


class _Module:
    """Stand-in for any module of the archive: its attributes by name."""

    __slots__ = ("attributes",)

    def __init__(self) -> None:
        self.attributes: dict[str, object] = {}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.attributes = state


class _Loader(Loader):
    """Unpickler of a module tree."""

    def __init__(self, stream: io.BytesIO, archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(stream, {})
        self.archive, self.folder = archive, folder

    def find_class(self, module: str, name: str) -> Any:
        """A stand-in; raises UnpicklingError for every name except those of modules and tensors."""
        # Modules of the network
        if module.partition(".")[0] == "__torch__":
            return _Module
        # Tensors and containers
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _Call(_tensor)
        if (module, name) == ("collections", "OrderedDict"):
            return _Call(dict)
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        if module == "torch.jit._pickle" and name in KEEPERS:
            return _Call(list)
        if (module, name) == ("torch.jit._pickle", "restore_type_tag"):
            return _Call(lambda value, _type: value)
        # Nothing else is called
        raise pickle.UnpicklingError(f"it names {module}.{name}")

    def persistent_load(self, pid: Any) -> Tensor:
        """The flat tensor of one record."""
        _, dtype, record, _, _ = pid
        return torch.frombuffer(
            bytearray(self.archive.read(f"{self.folder}data/{record}")), dtype=dtype
        )


def _tensor(
    flat: Tensor, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any
) -> Tensor:
    """A tensor that lies in `flat`; raises ValueError if it claims more than is there."""
    if math.prod(shape) > flat.numel():
        raise ValueError(f"a tensor of shape {shape} has {flat.numel()} values")
    return flat.as_strided(shape, strides, offset).clone()


def _named(module: _Module, prefix: str) -> dict[str, Tensor]:
    """All tensors below `module` with their dotted names."""
    tensors: dict[str, Tensor] = {}
    for name, value in module.attributes.items():
        if isinstance(value, Tensor):
            tensors[prefix + name] = value
        elif isinstance(value, _Module):
            tensors |= _named(value, f"{prefix}{name}.")
    return tensors
