"""Running a network on a device: precision, memory format, compilation."""

import os
import re
import shutil
import sysconfig
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.base.errors import OneRankError

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}  # fp32 and tf32: see set_float32


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Autocast to bf16 or fp16 if `precision` says so, else nothing; weights stay float32."""
    return torch.autocast(device.type, HALF.get(precision), enabled=precision in HALF)


def full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Within autocast a part that is computed in float32 after all."""
    if not torch.amp.is_autocast_available(device.type):  # the meta device
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def set_float32(precision: str, device: torch.device) -> None:
    """Let float32 products on CUDA round their inputs to TF32 if `precision` is tf32, else not.

    torch lets convolutions do so unless told. A CPU has no TF32: there tf32 is fp32.
    """
    if device.type == "cuda":
        # set by these names every reader in torch agrees; by fp32_precision the older ones raise
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        torch.backends.cudnn.allow_tf32 = precision == "tf32"
        # the compiler advises TF32 to whoever has not chosen it; the key has chosen
        warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores")


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch, or a library that allocates beside it, has too little memory on the device.

    cuBLAS, cuDNN and Triton, which loads its kernels when they are first used, raise errors of
    their own; the compiler wraps all of them.
    """
    return bool(
        isinstance(error, torch.OutOfMemoryError)
        or re.search(r"out of memory|ALLOC_FAILED", str(error))
    )


@contextmanager
def enough_memory(num: int, key: str, device: torch.device, unit: str = "images") -> Iterator[None]:
    """Turn a lack of device memory into a UserError that names the runtime key to lower."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise OneRankError(
            f"{num} {unit} at once do not fit on {device}: give a smaller {key}, "
            "which changes no result"
        ) from error


@contextmanager
def room_for_one(device: torch.device) -> Iterator[None]:
    """Turn a lack of memory for the weights, or a batch of one beside them, into a UserError."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise OneRankError(
            f"not even a batch of one fits on {device} beside the weights and their averages: "
            "share these out over more GPUs (runtime.strategy=fsdp2), or use a smaller model or a "
            "larger GPU"
        ) from error


def memory_format(device: torch.device) -> torch.memory_format:
    """That of images: channels last on CUDA, where bf16 convolutions want it, and plain on CPU.

    Activations lie channels last if images or weights do.
    """
    return torch.channels_last if device.type == "cuda" else torch.contiguous_format


def compiler(device: torch.device) -> str | None:
    """The compiler that torch.compile needs for a device: C for CUDA (Triton), C++ for CPU."""
    names = ["gcc", "cc", "clang"] if device.type == "cuda" else ["g++", "c++", "clang++"]
    chosen = os.environ.get("CC" if device.type == "cuda" else "CXX")
    return next((n for n in [chosen, *names] if n and shutil.which(n)), None)


def missing_for_compilation(device: torch.device) -> str:
    """What torch.compile would look for in vain, as "no …"; empty if all is there."""
    if compiler(device) is None:
        return f"no {'C' if device.type == 'cuda' else 'C++'} compiler"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "no Python.h (in the package python3-dev, or of the name of this Python)"
    return ""


def place(net: nn.Module, device: torch.device) -> nn.Module:
    """`net`, moved to `device` and to the memory format in which it is fastest there."""
    last = getattr(net, "channels_last_on_cpu", False)
    layout = torch.channels_last if last else memory_format(device)
    return net.to(device).to(memory_format=layout)  # type: ignore[call-overload]


def compiles(device: torch.device, setting: str | bool, loud: bool) -> bool:
    """Whether `setting` (runtime.compile) means compilation, and there is a compiler for it.

    Auto compiles on CUDA only: on CPU the compilation takes longer than it saves in a short run.
    """
    if setting is False:
        return False
    if missing := missing_for_compilation(device):
        if loud:
            print(f"torch.compile is off: {missing} was found", flush=True)
        return False
    return setting is True or device.type != "cpu"


def prepare(net: nn.Module, device: torch.device, setting: str | bool, loud: bool) -> nn.Module:
    """`net` on `device` in its memory format; compiled if `compiles` says so."""
    net = place(net, device)
    if not compiles(device, setting, loud):
        return net
    compiled: nn.Module = torch.compile(net)  # type: ignore[assignment]
    return compiled


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a CUDA device, or in the memory of this machine."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024
