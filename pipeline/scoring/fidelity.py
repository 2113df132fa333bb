"""torch-fidelity, imported when it is first needed and also beside a CPU-only torch.

The import takes as long as that of torch, so it waits for the first network or score.

torch-fidelity imports torchvision, which registers fake kernels of two operators. A torchvision
built for CUDA cannot load its library of operators beside a CPU-only torch, so those two do not
exist and the import fails. Declaring their signatures is enough: nothing here calls them. If the
library does load, declaring them again would abort the process, so the import is tried first; the
name of the library's file says nothing (`_C.so`, from torchvision 0.29 on `_C_stable.so`).
"""

import importlib
import importlib.util
import sys
from functools import cache
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
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        return False
    return True
