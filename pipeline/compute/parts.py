"""Tensors of which each rank holds a part (fsdp2), asked for without importing their class.

`torch.distributed.tensor` takes most of a second to import, which is half of what torch itself
takes. While nothing has imported it, no tensor is of its kind.
"""

import sys
from typing import Any

from torch import Tensor


def _class(module: str, name: str) -> Any:
    """A class of an imported module, else (), of which nothing is an instance."""
    return getattr(sys.modules.get(module), name, ())


def is_part(value: Any) -> bool:
    """Whether `value` is a DTensor: each rank holds a part of it."""
    return isinstance(value, _class("torch.distributed.tensor", "DTensor"))


def is_sharded_module(module: Any) -> bool:
    """Whether fsdp2's `fully_shard` has divided this module's parameters."""
    return isinstance(module, _class("torch.distributed.fsdp", "FSDPModule"))


def local(tensor: Any) -> Tensor:
    """The part of a tensor that this rank holds: all of it unless divided. Shares its memory."""
    return tensor.to_local() if is_part(tensor) else tensor


def full(tensor: Any) -> Tensor:
    """The whole tensor, which all ranks must ask for if it is divided."""
    return tensor.full_tensor() if is_part(tensor) else tensor
