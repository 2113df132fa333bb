"""The families of networks, by `model.kind`: one row each.

An image network is called as net(x, t, labels) and returns the velocity (B,3,H,W): x (B,3,H,W)
float32, t (B,) in [0,1], labels (B,) int64 of which num_classes means "no class". In training it
also gets the images' random words for dropout, keys (B,2) int32 (networks/dropout.py). That of a
discrete flow gets tokens (B,3,H,W) int64 as x, and returns logits (B,3,H,W,V) of V tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pipeline.config.model_keys import Model
from pipeline.networks.discrete_unet import DiscreteUNet
from pipeline.networks.edm2 import EDM2, Block
from pipeline.networks.magnitude import normalise_weights
from pipeline.networks.unet import Attention, Resample, ResBlock, UNet


@dataclass(frozen=True)
class Family:
    """How a network is built, and which of its modules fsdp2 gathers at a time."""

    # Network and its blocks
    build: Callable[[Any, int], nn.Module]  # of the family's keys and the number of classes
    blocks: tuple[type[nn.Module], ...]
    after_step: Callable[[nn.Module], None] | None = None  # changes the weights after each step
    # Called as net(x, t, labels, keys, True) it also returns the logarithm u (B,) of the squared
    # error that it expects of itself (flow/weighting.py)
    learns_uncertainty: bool = False


FAMILIES = {
    "unet": Family(UNet, (ResBlock, Attention, Resample)),
    "edm2": Family(EDM2, (Block,), normalise_weights, learns_uncertainty=True),
    "discrete_unet": Family(DiscreteUNet, (ResBlock, Attention, Resample)),
}


def family(model: Model) -> Family:
    """The family of the network that `model` describes."""
    return FAMILIES[model.kind]


def build(model: Model, num_classes: int) -> nn.Module:
    """The network of `model` on torch's current device, its weights drawn from torch's seed."""
    return family(model).build(model, num_classes)


def num_parameters(model: Model, num_classes: int) -> int:
    """Parameters of the network, counted without memory for them."""
    with torch.device("meta"):
        return sum(p.numel() for p in build(model, num_classes).parameters())
