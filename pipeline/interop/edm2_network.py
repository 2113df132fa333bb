"""The network in a pickle of EDM2: its keys, and the names and order of its tensors."""

import math
from collections.abc import Mapping

from torch import Tensor

from pipeline.base.errors import UserError
from pipeline.config.model_keys import EDM2Keys
from pipeline.interop.checkpoint import Peer
from pipeline.interop.edm2 import shown

LEVELS = 16  # entries of a list of levels, at most

# Our names of tensors, and theirs
OUTSIDE = {
    "noise_features.frequencies": "unet.emb_fourier.freqs",
    "noise_features.phases": "unet.emb_fourier.phases",
    "noise_embedding.weight": "unet.emb_noise.weight",
    "label_embedding.weight": "unet.emb_label.weight",
    "out_conv.weight": "unet.out_conv.weight",
    "out_gain": "unet.out_gain",
    "uncertainty_features.frequencies": "logvar_fourier.freqs",
    "uncertainty_features.phases": "logvar_fourier.phases",
    "uncertainty.weight": "logvar_linear.weight",
}
INSIDE = {
    "gain": "emb_gain",
    "conv1.weight": "conv_res0.weight",
    "embed.weight": "emb_linear.weight",
    "conv2.weight": "conv_res1.weight",
    "skip.weight": "conv_skip.weight",
    "attention.qkv.weight": "attn_qkv.weight",
    "attention.proj.weight": "attn_proj.weight",
}


# --- keys ----------------------------------------------------------------------------------------


def architecture(peer: Peer) -> dict[str, object]:
    """The `model` section; values are not checked except where they are reckoned with.

    Raises UserError if the lists of levels are not such.
    """
    # Pixels to factors
    args, size = peer.args, resolution_of(peer)
    levels, mult = args["attn_resolutions"], args["channel_mult"]
    for name, values in (("attn_resolutions", levels), ("channel_mult", mult)):
        whole = type(values) in (list, tuple) and all(type(n) is int and n > 0 for n in values)
        if not whole or len(values) > LEVELS:
            raise UserError(f"{peer.path} has {name}={shown(values)}: not a list of numbers")

    # Keys of the section
    return {
        "kind": "edm2",
        "channels": args["model_channels"],
        "channel_mult": mult,
        "blocks": args["num_blocks"],
        "attention_at": sorted({size // n for n in levels if size % n == 0}),
        "head_channels": args["channels_per_head"],
        "dropout": args["dropout"],
        "class_conditional": num_classes(peer) > 0,
        "sigma_data": args["sigma_data"],
        "uncertainty_channels": args["logvar_channels"],
    }


def resolution_of(peer: Peer) -> int:
    """px, both axes; raises UserError if the file does not say a number of them."""
    return _count(peer, "img_resolution", 1)


def num_classes(peer: Peer) -> int:
    """Number of classes, 0 without any; raises UserError if the tensors do not have as many."""
    number = _count(peer, "label_dim", 0)
    _check_claims(peer, {"label_dim": number} if number else {})
    return number


def _count(peer: Peer, name: str, least: int) -> int:
    value = peer.args[name]
    if type(value) is not int or value < least:
        raise UserError(f"{peer.path} has {name}={shown(value)}: not a number from {least} on")
    return value


def check_sizes(peer: Peer, model: EDM2Keys) -> None:
    """Raise UserError if the arguments claim a network far larger than the tensors.

    Before it is built: it would take that time and memory.
    """
    claims = {f"{model.channels} x {m}": model.channels * m for m in model.channel_mult}
    _check_claims(peer, claims | {"logvar_channels": model.uncertainty_channels})
    if model.blocks * len(model.channel_mult) > len(peer.state):
        raise _other_network(peer, "num_blocks")


def _check_claims(peer: Peer, claims: Mapping[str, int]) -> None:
    """Raise UserError about the first length that no side of a tensor has."""
    sides = {side for tensor in peer.state.values() for side in tensor.shape}
    for name, side in claims.items():
        if side not in sides:
            raise _other_network(peer, name)


def _other_network(peer: Peer, name: str) -> UserError:
    return UserError(
        f"the tensors of {peer.path} are not those of the network that it says it holds ({name}): "
        "get the original file"
    )


# --- names ---------------------------------------------------------------------------------------


def block_names(model: EDM2Keys, size: int) -> dict[str, str]:
    """Their name of each of our blocks, such as unet.dec.8x8_in0 of middle.0.

    `size` is px at the first level.
    """
    # One list per stack
    sizes = [size // 2**level for level in range(len(model.channel_mult))]
    levels = [f"{side}x{side}" for side in sizes]
    encoder, decoder = [], []
    for name in levels:
        encoder += [f"{name}_down"] if name != levels[0] else []
        encoder += [f"{name}_block{n}" for n in range(model.blocks)]
    for name in reversed(levels):
        decoder += [f"{name}_up"] if name != levels[-1] else []
        decoder += [f"{name}_block{n}" for n in range(model.blocks + 1)]
    middle = [f"{levels[-1]}_in{n}" for n in range(2)]

    # By place
    stacks = {"encoder": ("enc", encoder), "middle": ("dec", middle), "decoder": ("dec", decoder)}
    return {
        f"{stack}.{place}": f"unet.{side}.{name}"
        for stack, (side, names) in stacks.items()
        for place, name in enumerate(names)
    }


def our_names(names: list[str], model: EDM2Keys, size: int) -> dict[str, str]:
    """Our name of each of theirs; `names` are all of ours, `size` is px at the first level."""
    block_of = block_names(model, size)
    theirs = OUTSIDE | {"stem.weight": f"unet.enc.{size}x{size}_conv.weight"}
    for name in names:
        if name not in theirs:
            stack, place, part = name.split(".", 2)
            theirs[name] = f"{block_of[f'{stack}.{place}']}.{INSIDE[part]}"
    return {theirs[name]: name for name in names}


def our_tensor(name: str, value: Tensor, head_channels: int) -> Tensor:
    """A tensor of theirs in our shape, order and unit; `name` is ours."""
    # Frequencies in turns
    if name.endswith(("frequencies", "phases")):
        return value / (2 * math.pi)

    # All queries first, then keys, then values; there by head, channel, and which of the three
    if name.endswith("qkv.weight") and value.dim() and len(value) % (3 * head_channels) == 0:
        parts = value.unflatten(0, (-1, head_channels, 3))
        return parts.movedim(2, 0).flatten(0, 2)
    return value.reshape(1) if value.dim() == 0 else value
