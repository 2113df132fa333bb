"""Checkpoints of torchcfm's CIFAR-10 example become weights of ours with the same velocity.

The fixture was written by torchcfm 1.0.7: UNetModelWrapper with the arguments in its `config`,
parameters drawn as small multiples of powers of two, and its output `v` at images `x`, times `t`.
"""

import collections
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.config.model_keys import UNetKeys, read_model
from pipeline.networks.unet import UNet
from tests.conftest import ROOT, load_fixture, peer_state
from tests.test_import_weights import Bomb, imported, refused, their_name

WORDS = ("model.head_channels=16", "data.resolution=8")
State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def state() -> State:
    """The tensors of the small network, by torchcfm's names."""
    return peer_state(load_fixture("unet_torchcfm_tiny")[0])


def write(path: Path, state: State, **more: Any) -> Path:
    """A `.pt` as torchcfm's trainer writes it: averages `state`, other plain weights."""
    parameters = [torch.nn.Parameter(torch.ones(3))]
    optimizer = torch.optim.Adam(parameters, lr=2e-4)
    parameters[0].sum().backward()
    optimizer.step()
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lr_lambda=lambda step: 1.0)
    plain = collections.OrderedDict((name, value + 1) for name, value in state.items())
    whole = {"net_model": plain, "ema_model": collections.OrderedDict(state)}
    whole |= {"sched": schedule.state_dict(), "optim": optimizer.state_dict(), "step": 400000}
    torch.save({k: v for k, v in (whole | more).items() if v is not None}, path)
    return path


def cifar_state(channels: int = 32, **keys: Any) -> State:
    """Zeros in the shapes of the example's network, by torchcfm's names; no row for no class."""
    model = UNetKeys(
        channels=channels, channel_mult=(1, 2, 2, 2), blocks=2, attention_at=(2,), heads=4,
        head_channels=None, dropout=0.0, time_scale=1.0, scale_shift_norm=False,
        residual_updown=False, conv_resample=True, class_conditional=False,
    ).model_copy(update=keys)  # fmt: skip
    with torch.device("meta"):
        shapes = UNet(model, 3).state_dict()
    state = {their_name(name): torch.zeros(value.shape) for name, value in shapes.items()}
    if model.class_conditional:
        state["label_emb.weight"] = torch.ones(3, 4 * channels)
    return state


@pytest.mark.parametrize("prefix", ["", "module."])
def test_velocity_equals_torchcfm(state: State, prefix: str, tmp_path: Path) -> None:
    fixture, arguments = load_fixture("unet_torchcfm_tiny")
    wrapped = {prefix + name: value for name, value in state.items()}
    tensors, about = imported(write(tmp_path / "a.pt", wrapped), *WORDS)
    model = read_model(about["config"]["model"])
    assert (model.channels, model.blocks) == (arguments["num_channels"], 1)
    assert (model.channel_mult, model.attention_at) == ((1, 2), (2,))
    net = UNet(model, 0).eval()
    net.load_state_dict(tensors)
    x, t = torch.from_numpy(fixture["x"]), torch.from_numpy(fixture["t"])
    with torch.no_grad():
        velocity = net(x, t, torch.zeros(3, dtype=torch.int64))
    torch.testing.assert_close(velocity, torch.from_numpy(fixture["v"]), atol=1e-5, rtol=0)


def test_other_heads_give_another_velocity(state: State, tmp_path: Path) -> None:
    path = write(tmp_path / "a.pt", state)
    ours, other = (imported(path, f"model.heads={n}", WORDS[1])[0] for n in (4, 2))
    assert torch.equal(ours["stem.weight"], other["stem.weight"])
    assert not torch.equal(ours["middle.1.qkv.weight"], other["middle.1.qkv.weight"])


def test_plain_weights_on_request(state: State, tmp_path: Path) -> None:
    path = write(tmp_path / "a.pt", state)
    average, about = imported(path, *WORDS)
    plain, other = imported(path, *WORDS, "weights=plain")
    assert all(torch.equal(plain[name], average[name] + 1) for name in average)
    origin = about["config"]["imported"]
    assert origin["weights"] == "ema" and origin["step"] == 400000
    assert origin["trainer"].startswith("atong01/conditional-flow-matching")
    assert other["config"]["imported"]["weights"] == "plain"
    assert "train" not in about["config"]


@pytest.mark.parametrize(
    ("missing", "kind", "other"), [("ema_model", "ema", "plain"), ("net_model", "plain", "ema")]
)
def test_weights_that_are_not_there_are_named(
    state: State, missing: str, kind: str, other: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.pt", state, **{missing: None})
    assert f"use weights={other}" in refused(path, *WORDS, f"weights={kind}")
    assert imported(path, *WORDS)[1]["config"]["imported"]["weights"] == other


@pytest.mark.parametrize("channels", [32, 64])
def test_the_examples_network_needs_no_words(channels: int, tmp_path: Path) -> None:
    _, about = imported(write(tmp_path / "a.pt", cifar_state(channels)))
    model = about["config"]["model"]
    assert (model["head_channels"], model["channels"]) == (64, channels)
    assert about["record"]["resolution"] == 32


def test_heads_and_resolution_of_other_networks_are_asked_for(state: State, tmp_path: Path) -> None:
    path = write(tmp_path / "a.pt", state)
    sentence = refused(path)
    assert "its shapes are not those of its trainer's CIFAR-10 network" in sentence
    assert "give model.head_channels=N or model.heads=N" in sentence
    assert "give data.resolution=N in px" in refused(path, WORDS[0])


def test_a_network_of_classes_is_not_guided_by_itself(tmp_path: Path) -> None:
    path = write(tmp_path / "a.pt", cifar_state(class_conditional=True))
    tensors, about = imported(path)
    assert about["record"]["classes"] == ["class0000", "class0001", "class0002"]
    assert tensors["label_embedding.weight"].sum(1).tolist() == [128, 128, 128, 0]
    assert about["config"]["train"] == {"label_dropout": 0.0}
    words = ["experiment=tiny", f"weights={path.with_suffix('.safetensors')}", "sample.guidance=2"]
    step = subprocess.run(
        [sys.executable, "-m", "pipeline.sample", *words, f"out={tmp_path / 'out'}"],
        cwd=ROOT, text=True, capture_output=True,
    )  # fmt: skip
    assert step.returncode == 2
    assert "sample.guidance=2 is not possible, since the network was trained" in step.stderr


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"out.2.bias": None}, "lacks 1 tensors of this network, .* called out_conv.bias"),
        ({"time_embed.0.weight": None}, "no valid tensor time_embed.0.weight: is it of atong01/"),
        ({"out.2.bias": torch.zeros(4)}, r"out.2.bias of .* is \(4,\), but .* ask for \(3,\)"),
        ({"out.2.bias": torch.full((3,), torch.nan)}, "out.2.bias of .* not hold finite floats"),
        ({"out.2.bias": "text"}, "`ema_model` of .* has out.2.bias, which is not a plain tensor"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    state: State, change: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    changed = {name: value for name, value in (state | change).items() if value is not None}
    path = write(tmp_path / "a.pt", {}, net_model=state, ema_model=changed)
    assert re.search(sentence, refused(path, *WORDS))


@pytest.mark.parametrize("section", ["net_model", "ema_model", "optim"])
def test_nothing_in_the_file_is_executed(
    state: State, section: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAN", str(tmp_path / "ran"))
    path = write(tmp_path / "a.pt", state, **{section: {"x": Bomb()}})
    assert "only argparse.Namespace is admitted" in refused(path, *WORDS)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("damage", ["truncated", "one bit", "no tensors", "bare"])
def test_other_files_get_one_sentence(state: State, damage: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.pt", state)
    whole = path.read_bytes()
    middle = len(whole) // 2
    if damage == "truncated":
        path.write_bytes(whole[:middle])
    elif damage == "one bit":
        path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    elif damage == "no tensors":
        write(path, state, net_model=3, ema_model=None)
    else:
        torch.save(collections.OrderedDict(state), path)
    words = {"no tensors": "has no `model`, `net_model` or `ema_model` with tensors (it holds net_"}
    words["bare"] = "(it holds time_embed.0.weight, "
    assert words.get(damage, "is damaged or not a checkpoint") in refused(path, *WORDS)


@pytest.mark.slow
def test_imported_weights_are_sampled(state: State, tmp_path: Path) -> None:
    path, weights, out = write(tmp_path / "a.pt", state), tmp_path / "a.safetensors", tmp_path / "o"
    words = ["experiment=tiny", f"weights={weights}", f"out={out}", "sample.num=4"]
    words += ["sample.steps=2", "sample.guidance=1", "runtime.device=cpu"]
    first = ["pipeline.import_weights", str(path), str(weights), *WORDS]
    lines = [
        subprocess.run(
            [sys.executable, "-m", *command], cwd=ROOT, check=True, text=True, capture_output=True
        ).stdout.splitlines()
        for command in (first, ["pipeline.sample", *words])
    ]
    assert len(lines[0]) == 1
    count = sum(value.numel() for value in state.values())
    assert f"imported {count:,} parameters (ema weights, step 400000)" in lines[0][0]
    assert np.load(out / "images.npy").shape == (4, 8, 8, 3)
    about = json.loads((out / "sample.json").read_text())
    assert about["train"]["config"]["imported"]["step"] == 400000
