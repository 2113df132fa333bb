"""Checkpoints of facebookresearch/flow_matching's image example: the `.pth` file.

Such a file is a pickled dict: the network's state dict in `model`, bare or in its averaging
wrapper (`model.NAME`, `shadow_params.N`, `num_updates`); `args`, an argparse.Namespace; `epoch`;
and the optimiser, which is not read.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path

from pipeline.base.errors import UserError
from pipeline.base.json_objects import mapping_at
from pipeline.interop.checkpoint import Peer, State, read_state

TRAINER = "facebookresearch/flow_matching, examples/image"


def read_peer(path: Path, checkpoint: Mapping[str, object], weights: str | None) -> Peer:
    """The `checkpoint` at `path` with its `weights` (ema, plain; None: ema if there are any).

    Raises UserError about the first problem.
    """
    # Averaged or not
    plain, shadows = unwrapped(read_state(path, "model", mapping_at(checkpoint, "model")))
    if weights == "ema" and not shadows:
        raise UserError(f"weights=ema, but {path} holds no averaged weights: use weights=plain")
    kind = weights or ("ema" if shadows else "plain")

    # How it was trained
    args, epoch = checkpoint.get("args"), checkpoint.get("epoch")
    args = vars(args) if isinstance(args, argparse.Namespace) else args
    return Peer(
        path,
        TRAINER,
        averaged(path, plain, shadows) if kind == "ema" else plain,
        kind,
        args if isinstance(args, dict) else {},
        {"epoch": epoch if type(epoch) is int else None},
    )


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
