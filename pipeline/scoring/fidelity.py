"""torch-fidelity, imported when it is first needed, and without torchvision.

torch-fidelity imports torchvision for sets of images and networks that nothing here uses. That
takes as long as torch itself, whose compiler torchvision imports. So modules that wait take its
place, until something of torchvision is used.

Then it is imported, and registers fake kernels of two operators. A torchvision built for CUDA
cannot load its library of operators beside a CPU-only torch, so those two do not exist and the
import fails. Declaring their signatures is enough: nothing here calls them. If the library does
load, declaring them again would abort the process, so the import is tried first; the name of the
library's file says nothing (`_C.so`, from torchvision 0.29 on `_C_stable.so`).
"""

import importlib
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

import torch

OPERATORS = ("nms", "qnms")  # the operators with fake kernels
SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"

_declared: list[torch.library.Library] = []  # a declaration lasts as long as its Library


@cache
def load_torch_fidelity() -> ModuleType:
    """The package torch_fidelity; use it instead of `import torch_fidelity`."""
    if "torchvision" in sys.modules:
        return importlib.import_module("torch_fidelity")
    with waiting():
        return importlib.import_module("torch_fidelity")


@contextmanager
def waiting() -> Iterator[None]:
    """Imports of torchvision in this context give modules that wait."""
    finder = Finder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        forget()


def forget() -> None:
    """The next import of torchvision begins anew."""
    for name in filter(belongs, list(sys.modules)):
        del sys.modules[name]


def belongs(name: str) -> bool:
    """Whether a module is torchvision's."""
    return name.partition(".")[0] == "torchvision"


class Finder(MetaPathFinder, Loader):
    """Finds each module of torchvision, and loads none."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self, is_package=True) if belongs(fullname) else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return Waiting(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


class Waiting(ModuleType):
    """A module whose names are empty classes, to inherit from, while it is imported, and later
    those of the module of its name, which is then imported.
    """

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            return type(name, (), {})
        declare_operators()
        return getattr(importlib.import_module(self.__name__), name)


def declare_operators() -> bool:
    """Declare torchvision's operators if it cannot be imported without; return whether it was so.

    Does nothing if torchvision is absent, already imported, or able to load its operators.
    Calling it again changes nothing.
    """
    # Ours or already there
    if _declared or "torchvision" in sys.modules:
        return bool(_declared)
    if importlib.util.find_spec("torchvision") is None or _imports():
        return False

    # Fake the missing ones
    missing = [name for name in OPERATORS if not hasattr(torch.ops.torchvision, name)]
    if missing:
        _declared.append(torch.library.Library("torchvision", "FRAGMENT"))
    for name in missing:
        _declared[0].define(name + SIGNATURE)
    return bool(_declared)


def _imports() -> bool:
    """Whether torchvision can be imported as it is; if not, no trace of the attempt stays."""
    try:
        importlib.import_module("torchvision")
    except RuntimeError:  # an operator does not exist
        forget()
        return False
    return True
