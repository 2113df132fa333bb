"""Checkpoints of torchcfm's CIFAR-10 example: the `.pt` file.

Such a file is a pickled dict: the state dicts of `net_model` and its averages, `ema_model`; `step`;
and optimiser and schedule, which are not read. It does not say how the network was made: the
attention heads and the resolution are those of the example if the shapes are. The network is the
one of flow_matching under the same names, except for two things:

- the rows of `qkv` are sorted by head, then into query, key and value; ours the other way round;
- there is no label for "no class". It gets zeros here, and the file says that no label was dropped.

Times, the direction from noise to image and the range of pixels are ours. The variants otcfm, icfm
and fm learn our straight path; si learns a curved one, which the file does not tell.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from pipeline.base.errors import UserError
from pipeline.base.json_objects import mapping_at
from pipeline.config.model_keys import UNetKeys
from pipeline.interop.checkpoint import Peer, State, read_state

TRAINER = "atong01/conditional-flow-matching, examples/images/cifar10"
SECTIONS = {"ema": "ema_model", "plain": "net_model"}


def is_torchcfm(checkpoint: Mapping[str, object]) -> bool:
    """Whether a checkpoint has tensors under torchcfm's names."""
    return any(isinstance(checkpoint.get(name), dict) for name in SECTIONS.values())


def read_peer(path: Path, checkpoint: Mapping[str, object], weights: str | None) -> Peer:
    """The `checkpoint` at `path` with its `weights` (ema, plain; None: ema if there are any).

    Raises UserError about the first problem.
    """
    # Averaged or not
    held = [kind for kind, name in SECTIONS.items() if isinstance(checkpoint.get(name), dict)]
    kind = weights or held[0]
    if kind not in held:
        words = {"ema": "averaged weights", "plain": "plain weights"}[kind]
        raise UserError(f"weights={kind}, but {path} holds no {words}: use weights={held[0]}")
    state = read_state(path, SECTIONS[kind], mapping_at(checkpoint, SECTIONS[kind]))

    # A row for no class
    labels, dropout = state.get("label_emb.weight"), None
    if labels is not None and labels.dim() == 2:
        state["label_emb.weight"] = torch.cat([labels, labels.new_zeros(1, labels.shape[1])])
        dropout = 0.0
    step = checkpoint.get("step")
    age = {"step": step if type(step) is int else None}
    return Peer(path, TRAINER, state, kind, {}, age, dropout)


def sorted_by_kind(state: Mapping[str, Tensor], model: UNetKeys) -> State:
    """`state` by our names, with all queries first, then keys, then values."""
    # As many heads as the keys say
    ours = dict(state)
    for name, value in state.items():
        if ".qkv." in name:
            width = value.shape[0] // 3
            heads = width // model.head_channels if model.head_channels else model.heads
            ours[name] = value.unflatten(0, (heads, 3, -1)).transpose(0, 1).flatten(0, 2)
    return ours
