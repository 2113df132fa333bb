"""torch-fidelity, imported when it is first needed and also beside a CPU-only torch.

The import takes as long as that of torch, so it waits for the first network or score.

torch-fidelity imports torchvision, which registers fake kernels of two operators. A torchvision
built for CUDA cannot load its library of operators beside a CPU-only torch, so those two do not
exist and the import fails. Declaring their signatures is enough: nothing here calls them. If the
library does load, declaring them again would abort the process, so loading is tried first.
"""

import importlib
import importlib.util
import sys
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader, FileFinder, ModuleSpec
from types import ModuleType

import torch

OPERATORS = ("nms", "qnms")  # the operators with fake kernels
SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"

_declared: list[torch.library.Library] = []  # a declaration lasts as long as its Library


@cache
def load_torch_fidelity() -> ModuleType:
    """The package torch_fidelity; use it instead of `import torch_fidelity`."""
    declare_operators()
    return importlib.import_module("torch_fidelity")


def declare_operators() -> bool:
    """Declare torchvision's operators if its library does not load; return whether they are ours.

    Does nothing if torchvision is absent, already imported, or able to load its operators.
    Calling it again changes nothing.
    """
    # Ours or already there
    if _declared or "torchvision" in sys.modules:
        return bool(_declared)
    # A library that loads
    spec = importlib.util.find_spec("torchvision")  # does not import it
    if spec is None or not spec.submodule_search_locations or _library_loads(spec):
        return False

    # Fake the missing ones
    missing = [name for name in OPERATORS if not hasattr(torch.ops.torchvision, name)]
    if missing:
        _declared.append(torch.library.Library("torchvision", "FRAGMENT"))
    for name in missing:
        _declared[0].define(name + SIGNATURE)
    return bool(_declared)


def _library_loads(package: ModuleSpec) -> bool:
    """Whether torchvision's compiled operators can be loaded; they stay loaded if so."""
    # The compiled part
    folder = (package.submodule_search_locations or [""])[0]
    library = FileFinder(folder, (ExtensionFileLoader, EXTENSION_SUFFIXES)).find_spec("_C")
    if library is None or library.origin is None:
        return False
    # Loading shows it
    try:
        torch.ops.load_library(library.origin)
    except (ImportError, OSError):
        return False
    return True
