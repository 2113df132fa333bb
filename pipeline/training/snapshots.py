"""Averages of a training written to the files of snapshot_files.py, one tensor at a time."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pipeline.training import sharding
from pipeline.training.weights_file import WeightsAbout, stream_weights

if TYPE_CHECKING:
    from pipeline.training.weights_file import Layout

PRECISIONS = {"fp16": torch.float16, "fp32": torch.float32}


def save(path: Path, net: nn.Module, precision: str, about: WeightsAbout, keep: bool) -> None:
    """Write an average's parameters in `precision`, and its buffers as they are.

    All ranks must call it; the one with `keep` writes. No copy of the network is made: each tensor
    is put together, rounded and written before the next. Raises UserError if the disk is full.
    """
    # Wide types first, so that each number lies at a multiple of its size
    state, parameters = net.state_dict(), dict(net.named_parameters())
    rounded = dict.fromkeys(parameters, PRECISIONS[precision])
    types = {name: rounded.get(name, value.dtype) for name, value in state.items()}
    names = sorted(state, key=lambda name: (-types[name].itemsize, name))
    layout: Layout = {name: (types[name], state[name].shape) for name in names}

    # One by one, on all ranks
    tensors = whole_tensors(state, names, keep)
    if keep:
        stream_weights(path, tensors, layout, about)
    else:
        for _ in tensors:
            pass


def whole_tensors(state: dict[str, Tensor], names: list[str], keep: bool) -> Iterator[Tensor]:
    """The tensors by name, each put together from the ranks' parts when it is asked for."""
    for name in names:
        yield sharding.whole(state[name], keep)
