"""Weights files of small networks, as a training run would leave them."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.config.model_keys import Model
from pipeline.config.stages import stage_keys
from pipeline.data.pack import DataAbout
from pipeline.networks import families
from pipeline.training import weights_file
from tests.conftest import resolved

COUNTS = [24, 1, 50, 0, 24, 24, 3, 100, 24, 24]  # images of each class


SPREAD = {
    "stem.": 0.5,
    "token_embedding.": 1.0,
    "time_mlp.": 0.3,
    "label_embedding.": 1.5,
    "out_conv.": 0.3,
}


def random_net(model: Model, seed: int, classes: int = 10) -> nn.Module:
    """Random weights: a velocity to which state, time and class all matter, of about unit size."""
    net = families.build(model, classes)
    torch.manual_seed(seed)
    for name, parameter in net.named_parameters():
        if name.endswith("gain"):  # of edm2
            nn.init.constant_(parameter, 0.5)
            continue
        std = next((std for start, std in SPREAD.items() if name.startswith(start)), 0.1)
        nn.init.normal_(parameter, std=std)
    return net


def save_network(
    path: Path,
    seed: int = 0,
    resolution: int = 8,
    classes: int = 10,
    per_class: list[int] | None = COUNTS,
    **model: Any,
) -> Path:
    """A random_net of that many classes; `model` are keys of that section."""
    keys = {"time_scale": 10.0} | model if model.get("kind", "unet") == "unet" else model
    words = [f"model.{key}={value}" for key, value in keys.items()]
    if model.get("kind") == "discrete_unet":
        words += ["workload=discrete_flow", "sample.solver=jump"]
    config = resolved("experiment=tiny", *words)
    net = random_net(config.model, seed, classes)
    names = [f"class{k}" for k in range(classes)]
    record = DataAbout(
        source="shapes", resolution=resolution, recipe="box", classes=names, sha256=None,
        per_class=per_class and dict(zip(names, per_class, strict=False)),
    )  # fmt: skip
    about = weights_file.WeightsAbout(
        config=stage_keys(config, "train"), record=record.to_json(), images=1, gpu_hours=0.0,
        torch=str(torch.__version__),
    )  # fmt: skip
    weights_file.save_weights(path, net.state_dict(), about)
    return path
