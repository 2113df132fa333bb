"""Checkpoints of other trainers, files of torch.save, read without executing anything.

torch's weights_only unpickler admits one class here, argparse.Namespace, which only holds values.
Paths of pathlib are refused: they would do no harm, but flow_matching's trainer writes its args as
JSON before its first step, which fails on a path, so none of its checkpoints holds one unless the
trainer was changed; the message says how to make it a string.
"""

import argparse
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pipeline.base.errors import UserError

State = dict[str, Tensor]
NAMED = 3  # tensors that a message names


class Peer(NamedTuple):
    """A checkpoint: a network's tensors by its trainer's names, and how it was trained."""

    # The file
    path: Path
    trainer: str
    # Its weights
    state: State
    weights: str  # ema | plain
    # Its training
    args: Mapping[str, Any]
    age: Mapping[str, int | None]  # epoch or step, by that name; None: not known
    label_dropout: float | None = None  # rate; None: not known, with the label "no class"
    stored: str = "float32"  # dtype of the tensors in the file


def load(path: Path) -> Any:
    """The object in a checkpoint; raises UserError if it is missing, damaged or not admitted."""
    # Checksums, then tensors
    try:
        with zipfile.ZipFile(path) as archive:  # torch does not check the sums
            if archive.testzip():
                raise zipfile.BadZipFile
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError as error:
        raise UserError(f"checkpoint {path} does not exist") from error
    except Exception as error:  # any damage shows as some exception of the unpickler or zip
        raise UserError(refusal(path, error)) from error


def refusal(path: Path, error: Exception) -> str:
    """One sentence for what torch raised; a class or function that it refused is named."""
    # Another kind of file
    if other := another_kind(path):
        return f"{path} {other}: give the checkpoint that its trainer wrote"

    # What was refused
    refused = re.search(r"GLOBAL (\S+)", str(error))
    if refused is None:
        return (
            f"{path} is damaged or not a checkpoint of torch.save ({type(error).__name__}): "
            "copy it again"
        )

    # A way out
    remedy = "if you trust it, save it again with nothing but tensors and numbers"
    if refused[1].startswith("pathlib."):
        remedy = "on its own machine, turn the paths of its `args` into str and save it again"
    return f"{path} holds {refused[1]}, and only argparse.Namespace is admitted: {remedy}"


def another_kind(path: Path) -> str:
    """The kind of file that `path` is instead of a checkpoint; empty if it may be a damaged one."""
    if path.is_dir():
        return "is a folder"
    try:
        with safe_open(path, framework="np") as file:
            names = list(file.keys())
    except (SafetensorError, OSError):
        return ""
    first = ", ".join(names[:NAMED]) + (", …" if len(names) > NAMED else "")
    return f"is a safetensors file of {len(names)} tensors ({first}) without its training's facts"


def read_state(path: Path, section: str, tensors: Mapping[Any, Any]) -> State:
    """The tensors of one `section` of the file, without DDP's or DataParallel's prefix.

    Raises UserError about the first that is not a dense tensor of finite floats.
    """
    state = {str(name).removeprefix("module."): value for name, value in tensors.items()}
    for name, value in state.items():
        check_tensor(path, section, name, value)
    return state


def check_tensor(path: Path, section: str, name: str, value: Any) -> None:
    """Raise UserError unless `value` is a dense tensor in the file, and finite in float32."""
    dense = isinstance(value, Tensor) and not value.is_nested and value.layout == torch.strided
    whole = dense and value.device.type == "cpu" and value.numel() > 0
    if not whole or value.untyped_storage().nbytes() < value.nbytes:
        raise UserError(
            f"`{section}` of {path} has {name}, which is not a plain tensor: save it again"
        )
    if name != "num_updates" and not (value.is_floating_point() and value.float().isfinite().all()):
        raise UserError(
            f"tensor {name} of {path} does not hold finite floats (as float32): take another one"
        )
