"""Checkpoints of facebookresearch/flow_matching's image example: the `.pth` file and its tensors.

Such a file is a pickled dict: the network's state dict in `model`, bare or in its averaging
wrapper (`model.NAME`, `shadow_params.N`, `num_updates`); `args`, an argparse.Namespace; `epoch`;
and the optimiser, which is not read.

Nothing in the pickle is executed: torch's weights_only unpickler with one class admitted,
argparse.Namespace, which only holds values. A pathlib path stays out: constructing one would do no
harm, but that trainer writes its args as JSON before its first step, which fails on a path, so none
of its checkpoints holds one unless that was changed; the refusal says how to make it a string.
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

State = dict[str, Tensor]


# --- the file ----------------------------------------------------------------------------------


class Peer(NamedTuple):
    """What a checkpoint holds: a network's tensors by its trainer's names, and how it came by."""

    path: Path
    state: State
    weights: str  # ema | plain
    args: Mapping[str, Any]
    epoch: int | None


def load(path: Path) -> dict[str, Any]:
    """The dict in a checkpoint; raises UserError where it is none or holds anything else."""
    try:
        with zipfile.ZipFile(path) as archive:  # torch does not check the sums
            if archive.testzip():
                raise zipfile.BadZipFile
        with torch.serialization.safe_globals([argparse.Namespace]):
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError as error:
        raise UserError(f"checkpoint {path} does not exist") from error
    except Exception as error:  # any damage shows as some exception of the unpickler or zip
        raise UserError(refusal(path, error)) from error
    if type(found) is not dict or not isinstance(found.get("model"), dict):
        raise UserError(f"{path} has no `model` with tensors: give a checkpoint of {TRAINER}")
    return found


def refusal(path: Path, error: Exception) -> str:
    """One sentence for what torch raised; a class or function that it refused is named."""
    named = re.search(r"GLOBAL (\S+)", str(error))
    if named is None:
        return (
            f"{path} is damaged or no checkpoint of torch.save ({type(error).__name__}): "
            "copy it again"
        )
    remedy = "use it only where you trust it, and save it again with tensors and numbers alone"
    if named[1].startswith("pathlib."):
        remedy = "where it was made, turn the paths of its `args` into str and save it again"
    return f"{path} holds {named[1]}, and only argparse.Namespace is admitted: {remedy}"


def read_peer(path: Path, weights: str | None) -> Peer:
    """The checkpoint at `path` with its `weights` (ema, plain; None: ema where there is one).

    Raises UserError about the first problem.
    """
    found = load(path)
    state = {str(name).removeprefix("module."): value for name, value in found["model"].items()}
    for name, value in state.items():
        check_tensor(path, name, value)
    plain, shadows = unwrapped(state)
    if weights == "ema" and not shadows:
        raise UserError(f"weights=ema, but {path} holds no averaged weights: use weights=plain")
    kind = weights or ("ema" if shadows else "plain")
    args, epoch = found.get("args"), found.get("epoch")
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
        raise UserError(f"`model` of {path} has {name}, which is no plain tensor: save it again")
    if name != "num_updates" and not (value.is_floating_point() and value.isfinite().all()):
        raise UserError(f"tensor {name} of {path} is not of finite floats: use another checkpoint")


def unwrapped(state: State) -> tuple[State, State]:
    """The bare network's tensors, and the averaged ones (empty: there is no averaging wrapper)."""
    if not any(name.startswith("model.") for name in state):
        return state, {}
    shadows = {name: value for name, value in state.items() if name.startswith("shadow_params.")}
    rest = {k: v for k, v in state.items() if k not in shadows and k != "num_updates"}
    return {name.removeprefix("model."): value for name, value in rest.items()}, shadows


def averaged(path: Path, plain: State, shadows: State) -> State:
    """`plain` with the averaged values, which have numbers in place of names.

    The numbers follow model.parameters(), and so does a state dict: the network has no buffers.
    Raises UserError where number or shapes differ.
    """
    if set(shadows) != {f"shadow_params.{n}" for n in range(len(plain))}:
        raise UserError(
            f"{path} has {len(shadows)} averaged tensors for {len(plain)} parameters: "
            "use weights=plain"
        )
    values = [shadows[f"shadow_params.{n}"] for n in range(len(plain))]
    for number, ((name, value), shadow) in enumerate(zip(plain.items(), values, strict=True)):
        if value.shape != shadow.shape:
            raise UserError(
                f"shadow_params.{number} of {path} is {tuple(shadow.shape)}, not {name}'s "
                f"{tuple(value.shape)}: use weights=plain"
            )
    return dict(zip(plain, values, strict=True))


# --- the network -------------------------------------------------------------------------------


class Shapes:
    """Shapes of a state dict by the other trainer's names."""

    def __init__(self, peer: Peer) -> None:
        self.path = peer.path
        self.shapes = {name: tuple(value.shape) for name, value in peer.state.items()}

    def __contains__(self, name: str) -> bool:
        return name in self.shapes

    def side(self, name: str, axis: int) -> int:
        """Length of one axis of a tensor; raises UserError where there is none."""
        shape = self.shapes.get(name, ())
        if len(shape) <= axis:
            raise UserError(f"{self.path} has no valid tensor {name}: is it of {TRAINER}?")
        return shape[axis]

    def stages(self) -> int:
        """Number of decoder stages: levels x (blocks + 1)."""
        numbers = [re.match(r"output_blocks\.(\d{1,4})\.", name) for name in self.shapes]
        return 1 + max((int(match[1]) for match in numbers if match), default=-1)


def resampling(shapes: Shapes) -> tuple[int, bool, bool]:
    """blocks + 1, and whether residual blocks or else convolutions change the resolution.

    Decoder stage n ends a level where it holds a second residual block; a level of the encoder
    ends before a stage that is not a residual block: a convolution, or a mean without tensors.
    """
    total = shapes.stages()
    for number in range(total):
        if any(f"output_blocks.{number}.{k}.in_layers.0.weight" in shapes for k in (1, 2)):
            return number + 1, True, True
    for number in range(1, total):
        if f"input_blocks.{number}.0.in_layers.0.weight" not in shapes:
            return number, False, f"input_blocks.{number}.0.op.weight" in shapes
    return total, False, True


def architecture(peer: Peer) -> dict[str, Any]:
    """The `model` section without heads, as names and shapes of the tensors tell it.

    Raises UserError where they tell of no such network. Attention must be of the kind that all of
    that trainer's networks have (use_new_attention_order), which shapes do not tell.
    """
    shapes = Shapes(peer)
    channels = shapes.side("time_embed.0.weight", 1)
    period, residual, conv = resampling(shapes)
    firsts = [f"input_blocks.{n + 1}" for n in range(0, shapes.stages(), max(period, 1))]
    widths = [shapes.side(f"{first}.0.in_layers.2.weight", 0) for first in firsts]
    if not widths or not channels or any(width % channels for width in widths):
        raise UserError(
            f"{peer.path} has levels of {widths} channels, no multiples of {channels}: "
            f"is it of {TRAINER}?"
        )
    doubled = shapes.side(f"{firsts[0]}.0.emb_layers.1.weight", 0) == 2 * widths[0]
    return {
        "channels": channels,
        "channel_mult": tuple(width // channels for width in widths),
        "blocks": period - 1,
        "attention_at": tuple(2**n for n, f in enumerate(firsts) if f"{f}.1.qkv.weight" in shapes),
        "dropout": 0.0,
        "time_scale": 1.0,
        "scale_shift_norm": doubled,
        "residual_updown": residual,
        "conv_resample": conv,
        "class_conditional": "label_emb.weight" in shapes,
    }
