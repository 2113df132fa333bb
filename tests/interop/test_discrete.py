"""Checkpoints of the reference's discrete flow: read whole, sampled, or refused in one sentence."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline import import_weights, sample
from pipeline.base.errors import UserError
from pipeline.config.model_keys import read_model
from pipeline.networks import families
from pipeline.sampling.job import read_weights
from pipeline.training import weights_file
from tests import discrete
from tests.test_import_weights import in_ema, write

WORDS = ("model.head_channels=32", "data.resolution=8")


@pytest.fixture(scope="module")
def network() -> dict[str, Any]:
    return discrete.arrays("network")


def imported(path: Path, *words: str) -> Path:
    """The file that the command line writes for the checkpoint at `path`."""
    out = path.with_suffix(".safetensors")
    import_weights.main([str(path), str(out), *words])
    return out


@pytest.mark.parametrize("wrapped", [False, True])
def test_logits_equal_the_reference(network: dict, wrapped: bool, tmp_path: Path) -> None:
    state = discrete.peer_state(network)
    state = {name: value.float() for name, value in state.items()}
    path = write(tmp_path / "a.pth", in_ema(state) if wrapped else state)
    out = imported(path, *WORDS)
    about = weights_file.read_about(out)
    model = read_model(about.config["model"])
    unseen = {"conv_resample": model.conv_resample}  # nothing resamples in a single level
    assert model == discrete.model_keys(json.loads(network["config"])).model_copy(update=unseen)
    assert (about.config["workload"], read_weights(out).mask_exponent) == ("discrete_flow", 3)
    net = families.build(model, 5).eval()
    net.load_state_dict(weights_file.load_weights(out))
    with torch.no_grad():
        logits = net(network["x_t"], network["t"], network["labels"])
    torch.testing.assert_close(logits, network["logits"], atol=1e-4, rtol=0)


def test_its_weights_are_sampled(network: dict, tmp_path: Path) -> None:
    out = imported(write(tmp_path / "a.pth", discrete.peer_state(network)), *WORDS)
    words = ["experiment=tiny", "sample.solver=jump", "sample.num=2", "sample.steps=2"]
    sample.main([*words, f"weights={out}", f"out={tmp_path / 'samples'}", "runtime.device=cpu"])
    assert np.load(tmp_path / "samples" / "images.npy").shape == (2, 8, 8, 3)


def test_the_heads_are_those_of_the_published_network_alone(network: dict, tmp_path: Path) -> None:
    path = write(tmp_path / "a.pth", discrete.peer_state(network), dataset="cifar10")
    with pytest.raises(UserError, match="name no known network of these shapes: give model.head"):
        imported(path, "data.resolution=8")


def test_a_lacking_table_is_named(network: dict, tmp_path: Path) -> None:
    state = discrete.peer_state(network)
    del state["unet.label_emb.weight"]
    state["unet.label_emb.bias"] = torch.zeros(3)
    with pytest.raises(UserError, match="has unet.label_emb.bias, which this network does not"):
        imported(write(tmp_path / "a.pth", state), *WORDS)
