"""The reference's discrete flow in a fixture, as our network; small words to train one."""

import json
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.config.model_keys import DiscreteUNetKeys
from pipeline.interop.flow_matching_network import our_state
from pipeline.networks.discrete_unet import DiscreteUNet
from tests.conftest import ROOT

# Laid over experiment=tiny
WORDS = (
    *("workload=discrete_flow", "model.kind=discrete_unet", "model.channels=32"),
    *("model.channel_mult=[1]", "model.attention_at=[]", "model.values=16", "sample.solver=jump"),
)


def arrays(part: str) -> dict[str, Any]:
    """The arrays of one part of the fixture, network or solver, as tensors."""
    with np.load(ROOT / "tests" / "fixtures" / "discrete_unet_tiny.npz") as file:
        names = [name for name in file.files if name.startswith(f"{part}/")]
        loaded = {name.removeprefix(f"{part}/"): file[name] for name in names}
    return {k: torch.from_numpy(v) if v.ndim else v.item() for k, v in loaded.items()}


def peer_state(network: dict[str, Any]) -> dict[str, Tensor]:
    """The reference's state dict, under its own names."""
    names = [name for name in network if name.startswith("state/")]
    return {name.removeprefix("state/"): network[name] for name in names}


def model_keys(arguments: dict[str, Any]) -> DiscreteUNetKeys:
    """The section `model` of the arguments that the public trainer gives its network."""
    return DiscreteUNetKeys(
        kind="discrete_unet",
        channels=arguments["model_channels"],
        channel_mult=tuple(arguments["channel_mult"]),
        blocks=arguments["num_res_blocks"],
        attention_at=tuple(arguments["attention_resolutions"]),
        head_channels=arguments["num_head_channels"],
        heads=1,
        dropout=arguments["dropout"],
        scale_shift_norm=arguments["use_scale_shift_norm"],
        residual_updown=arguments["resblock_updown"],
        conv_resample=arguments["conv_resample"],
        class_conditional=arguments["num_classes"] is not None,
        values=arguments["vocab_size"] - 1,
    )


def reference() -> tuple[DiscreteUNet, dict[str, Any]]:
    """The reference's network as ours, and what it made of its inputs."""
    network = arrays("network")
    arguments = json.loads(network["config"])
    net = DiscreteUNet(model_keys(arguments), arguments["num_classes"]).eval()
    net.load_state_dict(our_state(peer_state(network)))
    return net, network
