"""How the network is run on a device: precision, memory format, compilation."""

import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import nn

from pipeline.errors import OneRankError


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """bf16 autocast where `precision` is bf16, else nothing; weights stay float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


@contextmanager
def enough_memory(images: int, key: str, device: torch.device) -> Iterator[None]:
    """Turn a lack of device memory into a UserError that names the runtime key to lower."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise OneRankError(
            f"{images} images at once do not fit on {device}: give a smaller {key}, "
            "which changes no result"
        ) from error


def memory_format(device: torch.device) -> torch.memory_format:
    """Channels last on CUDA, where bf16 convolutions want it; on CPU the plain format is faster."""
    return torch.channels_last if device.type == "cuda" else torch.contiguous_format


def compiler(device: torch.device) -> str | None:
    """The compiler that torch.compile needs for a device: C for CUDA (Triton), C++ for CPU."""
    names = ["gcc", "cc", "clang"] if device.type == "cuda" else ["g++", "c++", "clang++"]
    chosen = os.environ.get("CC" if device.type == "cuda" else "CXX")
    return next((n for n in [chosen, *names] if n and shutil.which(n)), None)


def prepare(net: nn.Module, device: torch.device, setting: str | bool, loud: bool) -> nn.Module:
    """`net` on `device` in its memory format; compiled where `setting` (runtime.compile) allows.

    Auto compiles on CUDA only: on CPU the compilation takes longer than it saves in a short run.
    """
    net = net.to(device).to(memory_format=memory_format(device))  # type: ignore[call-overload]
    if setting is False:
        return net
    if compiler(device) is None:
        if loud:
            print(f"torch.compile is off: no C++ compiler was found for {device.type}", flush=True)
        return net
    if setting == "auto" and device.type == "cpu":
        return net
    compiled: nn.Module = torch.compile(net)  # type: ignore[assignment]
    return compiled
