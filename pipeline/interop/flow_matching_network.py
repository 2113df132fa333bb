"""The network in a checkpoint of flow_matching or torchcfm: architecture, names of tensors.

Both have the UNet of ADM under ADM's names of its tensors.
"""

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from pipeline.base.errors import UserError
from pipeline.interop import torchcfm
from pipeline.interop.checkpoint import Peer, State

# flow_matching's networks by its --dataset: their architecture, and the attention heads, which are
# believed only if the checkpoint has that architecture.
ARCHITECTURES: dict[str, tuple[dict[str, object], dict[str, int]]] = {
    "imagenet": (
        {"channels": 192, "channel_mult": (1, 2, 3, 4), "blocks": 3, "attention_at": (2, 4, 8)},
        {"head_channels": 64},
    ),
    "cifar10": (
        {"channels": 128, "channel_mult": (2, 2, 2), "blocks": 4, "attention_at": (2,)},
        {"heads": 1},
    ),
}

# The same with --discrete_flow_matching.
DISCRETE: dict[str, tuple[dict[str, object], dict[str, int]]] = {
    "imagenet": (
        {"channels": 192, "channel_mult": (2, 3, 4, 4), "blocks": 4, "attention_at": (2, 4, 8)},
        {"head_channels": 64},
    ),
    "cifar10": (
        {"channels": 96, "channel_mult": (3, 4, 4), "blocks": 5, "attention_at": (2,)},
        {"head_channels": 64},
    ),
}
TABLE = "pixel_embedding.embedding_table.weight"  # of tokens: values, then the mask

# The same of torchcfm's network, which its files do not name; `num_channel` is a flag there.
TORCHCFM: tuple[dict[str, object], dict[str, int]] = (
    {"channel_mult": (1, 2, 2, 2), "blocks": 2, "attention_at": (2,), "scale_shift_norm": False}
    | {"residual_updown": False},
    {"head_channels": 64},
)
TORCHCFM_PX = 32  # of the images, both axes
COLOURS = 3

# The trainers' names of the layers, and ours.
RENAMES: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r"^unet\.", ""),  # of a discrete flow
    (r"^pixel_embedding\.embedding_table\.", "token_embedding."),
    (r"^time_embed\.", "time_mlp."),
    (r"^label_emb\.", "label_embedding."),
    (r"^input_blocks\.0\.0\.", "stem."),
    (r"^input_blocks\.(\d{1,4})\.", lambda m: f"encoder.{int(m[1]) - 1}."),
    (r"^middle_block\.", "middle."),
    (r"^output_blocks\.", "decoder."),
    (r"^out\.0\.", "out_norm."),
    (r"^out\.2\.", "out_conv."),
    (r"\.in_layers\.0\.", ".norm1."),
    (r"\.in_layers\.2\.", ".conv1."),
    (r"\.emb_layers\.1\.", ".embed."),
    (r"\.out_layers\.0\.", ".norm2."),
    (r"\.out_layers\.3\.", ".conv2."),
    (r"\.skip_connection\.", ".skip."),
    (r"\.proj_out\.", ".proj."),
    (r"\.op\.", ".conv."),
)


# --- architecture ------------------------------------------------------------------------------


class Shapes:
    """Shapes of a state dict by the other trainer's names, which begin with the UNet's layers."""

    def __init__(self, peer: Peer) -> None:
        self.path, self.trainer = peer.path, peer.trainer
        self.shapes = {n.removeprefix("unet."): tuple(v.shape) for n, v in peer.state.items()}

    def __contains__(self, name: str) -> bool:
        return name in self.shapes

    def side(self, name: str, axis: int) -> int:
        """Length of one axis of a tensor; raises UserError if there is none."""
        shape = self.shapes.get(name, ())
        if len(shape) <= axis:
            raise UserError(f"{self.path} has no valid tensor {name}: is it of {self.trainer}?")
        return shape[axis]

    def stages(self) -> int:
        """Number of decoder stages: levels x (blocks + 1)."""
        numbers = [re.match(r"output_blocks\.(\d{1,4})\.", name) for name in self.shapes]
        return 1 + max((int(match[1]) for match in numbers if match), default=-1)


def resampling(shapes: Shapes) -> tuple[int, bool, bool]:
    """blocks + 1, and whether residual blocks or else convolutions change the resolution.

    Decoder stage n ends a level if it holds a second residual block; a level of the encoder ends
    before a stage that is not a residual block: a convolution, or a mean without tensors.
    """
    # Blocks that resample
    total = shapes.stages()
    for stage in range(total):
        if any(f"output_blocks.{stage}.{k}.in_layers.0.weight" in shapes for k in (1, 2)):
            return stage + 1, True, True
    # Separate convolutions
    for stage in range(1, total):
        if f"input_blocks.{stage}.0.in_layers.0.weight" not in shapes:
            return stage, False, f"input_blocks.{stage}.0.op.weight" in shapes
    return total, False, True


def architecture(peer: Peer) -> dict[str, object]:
    """The `model` section without heads, from the names and shapes of the tensors.

    Raises UserError if they are not those of such a network. Attention must be of the kind that all
    networks of that trainer have: with use_new_attention_order in flow_matching, without it in
    torchcfm. It does not show in any shape.
    """
    # Widths of the levels
    shapes = Shapes(peer)
    if TABLE in shapes:
        channels = COLOURS * shapes.side(TABLE, 1)
    else:
        channels = shapes.side("time_embed.0.weight", 1)
    period, residual, conv = resampling(shapes)
    firsts = [f"input_blocks.{n + 1}" for n in range(0, shapes.stages(), max(period, 1))]
    widths = [shapes.side(f"{first}.0.in_layers.2.weight", 0) for first in firsts]

    # Multiples of the first
    if not widths or not channels or any(width % channels for width in widths):
        raise UserError(
            f"{peer.path} has levels of {widths} channels, not multiples of {channels}: "
            f"is it of {peer.trainer}?"
        )

    # Keys of the section
    doubled = shapes.side(f"{firsts[0]}.0.emb_layers.1.weight", 0) == 2 * widths[0]
    return {
        "channels": channels,
        "channel_mult": tuple(width // channels for width in widths),
        "blocks": period - 1,
        "attention_at": tuple(2**n for n, f in enumerate(firsts) if f"{f}.1.qkv.weight" in shapes),
        "dropout": 0.0,
        **tokens_or_times(shapes),
        "scale_shift_norm": doubled,
        "residual_updown": residual,
        "conv_resample": conv,
        "class_conditional": "label_emb.weight" in shapes,
    }


def tokens_or_times(shapes: Shapes) -> dict[str, object]:
    """The keys of the `model` section that only networks of tokens, or only the others, have."""
    if TABLE in shapes:
        return {"kind": "discrete_unet", "values": shapes.side(TABLE, 0) - 1}
    return {"time_scale": 1.0}


def known_network(peer: Peer) -> tuple[dict[str, object], dict[str, int]]:
    """Architecture and heads of the network that the trainer makes by default; empty: unknown."""
    if peer.trainer == torchcfm.TRAINER:
        return TORCHCFM
    known = DISCRETE if TABLE in peer.state else ARCHITECTURES
    return known.get(str(peer.args.get("dataset")), ({}, {}))


def unknown_network(peer: Peer) -> str:
    """Why the heads of the known network are not believed."""
    if peer.trainer == torchcfm.TRAINER:
        return "its shapes are not those of its trainer's CIFAR-10 network"
    return f"its args (dataset: {peer.args.get('dataset')}) name no known network of these shapes"


def agrees(shape: Mapping[str, object], expected: Mapping[str, object]) -> bool:
    """Whether the `architecture` of a checkpoint has all keys of a known one."""
    return all(shape[key] == value for key, value in expected.items())


def resolution_of(peer: Peer, shape: Mapping[str, object]) -> int | None:
    """px by the known network, by CIFAR-10 or by a folder NAME_<px> of the data; None: not known.

    `shape` is the `architecture` of the checkpoint.
    """
    # Of the known network
    if peer.trainer == torchcfm.TRAINER:
        return TORCHCFM_PX if agrees(shape, TORCHCFM[0]) else None

    # By the arguments
    if peer.args.get("dataset") == "cifar10":
        return 32
    sizes = re.findall(r"_(\d{1,4})(?=/|$)", str(peer.args.get("data_path")))
    return int(sizes[-1]) if sizes else None


def heads(
    peer: Peer, shape: Mapping[str, object], options: Mapping[str, object]
) -> dict[str, object]:
    """`heads` and `head_channels`: from the command line, else of the known network.

    `shape` is the `architecture` of the checkpoint. Raises UserError if neither gives the heads, or
    if the known network has another architecture.
    """
    # The user's choice
    keys = ("heads", "head_channels")
    chosen = {key: options[f"model.{key}"] for key in keys if f"model.{key}" in options}

    # Else the known network
    if not chosen:
        expected, known = known_network(peer)
        chosen = {**known}
        if not chosen or not agrees(shape, expected):
            raise UserError(
                f"the attention heads of {peer.path} do not show in its shapes, and "
                f"{unknown_network(peer)}: give model.head_channels=N or model.heads=N, as its "
                "trainer's num_head_channels or num_heads"
            )
    return {"heads": 1, "head_channels": None} | chosen


# --- names -------------------------------------------------------------------------------------


def our_name(name: str) -> str:
    """Our name of a tensor that the other trainer calls `name`."""
    for pattern, new in RENAMES:
        name = re.sub(pattern, new, name)
    return name


def our_state(state: Mapping[str, Tensor]) -> State:
    """The other trainer's tensors under our names and shapes, float32; no two share memory."""
    ours = {our_name(name): value.to(torch.float32, copy=True) for name, value in state.items()}
    for name, value in ours.items():
        if name.endswith((".qkv.weight", ".proj.weight")) and value.dim() == 3:
            ours[name] = value.unsqueeze(-1)  # a 1x1 convolution over pixels, kept as 1-D there
    return ours
