"""Checkpoints of facebookresearch/flow_matching's image example: the `.pth` file.

Such a file is a pickled dict: the network's state dict in `model`, bare or in its averaging
wrapper (`model.NAME`, `shadow_params.N`, `num_updates`); `args`, an argparse.Namespace; `epoch`;
and the optimiser, which is not read.

Nothing in the pickle is executed: torch's weights_only unpickler admits one class here,
argparse.Namespace, which only holds values. Paths of pathlib are refused: they would do no harm,
but that trainer writes its args as JSON before its first step, which fails on a path, so none of
its checkpoints holds one unless the trainer was changed; the message says how to make it a string.
"""

import argparse
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pipeline.base.errors import UserError

TRAINER = "facebookresearch/flow_matching, examples/image"

NAMED = 6  # keys of a file that a message names

State = dict[str, Tensor]


class Peer(NamedTuple):
    """A checkpoint: a network's tensors by its trainer's names, and how it was trained."""

    # The file
    path: Path
    # Its weights
    state: State
    weights: str  # ema | plain
    # Its training
    args: Mapping[str, Any]
    epoch: int | None


def load(path: Path) -> dict[str, Any]:
    """The dict in a checkpoint; raises UserError if it is not a checkpoint."""
    # Checksums, then tensors
    try:
        with zipfile.ZipFile(path) as archive:  # torch does not check the sums
            if archive.testzip():
                raise zipfile.BadZipFile
        with torch.serialization.safe_globals([argparse.Namespace]):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError as error:
        raise UserError(f"checkpoint {path} does not exist") from error
    except Exception as error:  # any damage shows as some exception of the unpickler or zip
        raise UserError(refusal(path, error)) from error

    # Tensors by name
    if type(checkpoint) is not dict or not isinstance(checkpoint.get("model"), dict):
        keys = list(checkpoint)[:NAMED] if type(checkpoint) is dict else [type(checkpoint).__name__]
        raise UserError(
            f"{path} has no `model` with tensors (it holds {', '.join(map(str, keys))}): give a "
            f"checkpoint of {TRAINER}"
        )
    return checkpoint


def refusal(path: Path, error: Exception) -> str:
    """One sentence for what torch raised; a class or function that it refused is named."""
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


def read_peer(path: Path, weights: str | None) -> Peer:
    """The checkpoint at `path` with its `weights` (ema, plain; None: ema if there are any).

    Raises UserError about the first problem.
    """
    # Tensors that can be trusted
    checkpoint = load(path)
    tensors = checkpoint["model"].items()
    state = {str(name).removeprefix("module."): value for name, value in tensors}
    for name, value in state.items():
        check_tensor(path, name, value)

    # Averaged or not
    plain, shadows = unwrapped(state)
    if weights == "ema" and not shadows:
        raise UserError(f"weights=ema, but {path} holds no averaged weights: use weights=plain")
    kind = weights or ("ema" if shadows else "plain")

    # How it was trained
    args, epoch = checkpoint.get("args"), checkpoint.get("epoch")
    args = vars(args) if isinstance(args, argparse.Namespace) else args
    return Peer(
        path,
        averaged(path, plain, shadows) if kind == "ema" else plain,
        kind,
        args if isinstance(args, dict) else {},
        epoch if type(epoch) is int else None,
    )


def check_tensor(path: Path, name: str, value: Any) -> None:
    """Raise UserError unless `value` is a dense tensor of finite numbers that lie in the file."""
    dense = isinstance(value, Tensor) and not value.is_nested and value.layout == torch.strided
    whole = dense and value.device.type == "cpu" and value.numel() > 0
    if not whole or value.untyped_storage().nbytes() < value.nbytes:
        raise UserError(f"`model` of {path} has {name}, which is not a plain tensor: save it again")
    if name != "num_updates" and not (value.is_floating_point() and value.isfinite().all()):
        raise UserError(f"tensor {name} of {path} does not hold finite floats: take another one")


def unwrapped(state: State) -> tuple[State, State]:
    """The bare network's tensors, and the averaged ones (empty: there is no averaging wrapper)."""
    if not any(name.startswith("model.") for name in state):
        return state, {}
    shadows = {name: value for name, value in state.items() if name.startswith("shadow_params.")}
    tensors = {k: v for k, v in state.items() if k not in shadows and k != "num_updates"}
    return {name.removeprefix("model."): value for name, value in tensors.items()}, shadows


def averaged(path: Path, plain: State, shadows: State) -> State:
    """`plain` with the averaged values, which have numbers instead of names.

    The numbers follow model.parameters(), and so does a state dict: the network has no buffers.
    Raises UserError if the count or the shapes differ.
    """
    # One for each parameter
    if set(shadows) != {f"shadow_params.{n}" for n in range(len(plain))}:
        raise UserError(
            f"{path} has {len(shadows)} averaged tensors for {len(plain)} parameters: "
            "use weights=plain"
        )

    # Of the same shape
    values = [shadows[f"shadow_params.{n}"] for n in range(len(plain))]
    for place, ((name, value), shadow) in enumerate(zip(plain.items(), values, strict=True)):
        if value.shape != shadow.shape:
            raise UserError(
                f"shadow_params.{place} of {path} is {tuple(shadow.shape)}, not {name}'s "
                f"{tuple(value.shape)}: use weights=plain"
            )
    return dict(zip(plain, values, strict=True))
