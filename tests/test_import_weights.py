"""Checkpoints of the reference trainer: read whole, or refused in one sentence; never executed."""

import argparse
import collections
import io
import json
import os
import pathlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pipeline import import_weights
from pipeline.base.errors import UserError
from pipeline.bench.gpu_check.networks import model_keys
from pipeline.config.model_keys import UNetKeys, read_model
from pipeline.data.pack import DataAbout
from pipeline.interop import checkpoint, flow_matching, flow_matching_network
from pipeline.networks.unet import UNet
from pipeline.training import weights_file
from tests.conftest import ROOT, load_fixture, peer_state, write_pack

IMAGENET, CIFAR = "unet_imagenet_tiny", "unet_cifar_tiny"
HEADS = {IMAGENET: "model.head_channels=16", CIFAR: "model.heads=1"}
SIZE = "data.resolution=16"
State = dict[str, torch.Tensor]


def in_ema(state: State, prefix: str = "") -> State:
    """`state` as the averages in the reference's wrapper, around other plain weights."""
    wrapped = {"num_updates": torch.tensor(7)}
    wrapped |= {f"model.{name}": value + 1 for name, value in state.items()}
    wrapped |= {f"shadow_params.{n}": value for n, value in enumerate(state.values())}
    return collections.OrderedDict((prefix + name, value) for name, value in wrapped.items())


def write(path: Path, state: Any, **args: Any) -> Path:
    """A `.pth` as the reference trainer writes it."""
    parameters = [torch.nn.Parameter(torch.ones(3))]
    optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.95))
    parameters[0].sum().backward()
    optimizer.step()
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=9)
    args = {"dataset": "imagenet", "data_path": "x/train_blurred_16/box/"} | args
    args |= {"ode_options": {"step_size": 0.01}, "optimizer_betas": [0.9, 0.95], "lr": 1e-4}
    whole = {"model": state, "optimizer": optimizer.state_dict(), "epoch": 899}
    whole |= {"lr_schedule": schedule.state_dict(), "scaler": {"scale": 65536.0}}
    torch.save(whole | {"args": argparse.Namespace(**args)}, path)
    return path


def imported(path: Path, *words: str) -> tuple[State, dict[str, Any]]:
    """Tensors and metadata that the command line writes for the checkpoint at `path`."""
    out = path.with_suffix(".safetensors")
    import_weights.main([str(path), str(out), *words])
    return weights_file.load_weights(out), weights_file.read_about(out).to_json()


def refused(path: Path, *words: str) -> str:
    """The one sentence that refuses the checkpoint at `path`; nothing is written."""
    out = path.with_suffix(".safetensors")
    with pytest.raises(UserError) as error:
        import_weights.main([str(path), str(out), *words])
    assert not out.exists()
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture(scope="module")
def state() -> State:
    """The tensors of the class-conditional network, by the reference's names."""
    return peer_state(load_fixture(IMAGENET)[0])


# --- parity ------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrapped", ["bare", "ema", "ema in DDP"])
@pytest.mark.parametrize("name", [IMAGENET, CIFAR])
def test_velocity_equals_the_reference(name: str, wrapped: str, tmp_path: Path) -> None:
    fixture, arguments = load_fixture(name)
    state = peer_state(fixture)
    if wrapped != "bare":
        state = in_ema(state, "module." if "DDP" in wrapped else "")
    tensors, about = imported(write(tmp_path / "a.pth", state), HEADS[name])
    model = read_model(about["config"]["model"])
    assert model == model_keys(arguments).model_copy(update={"dropout": 0.0, "heads": model.heads})
    net = UNet(model, len(about["record"]["classes"])).eval()
    net.load_state_dict(tensors)
    x, t = torch.from_numpy(fixture["x"]), torch.from_numpy(fixture["t"])
    labels = {"v_uncond": torch.full((3,), arguments["num_classes"] or 0)}
    if "v_cond" in fixture.files:
        labels["v_cond"] = torch.from_numpy(fixture["labels"])
    for key, label in labels.items():
        with torch.no_grad():
            expected = torch.from_numpy(fixture[key])
            torch.testing.assert_close(net(x, t, label), expected, atol=1e-4, rtol=0)


def test_plain_weights_on_request(state: State, tmp_path: Path) -> None:
    path = write(tmp_path / "a.pth", in_ema(state))
    average, about = imported(path, HEADS[IMAGENET])
    plain, other = imported(path, HEADS[IMAGENET], "weights=plain")
    assert all(torch.equal(plain[name], average[name] + 1) for name in average)
    assert about["config"]["imported"]["weights"] == "ema"
    assert other["config"]["imported"]["weights"] == "plain"


def test_heads_follow_from_the_dataset_if_the_network_is_that_of_it(
    state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.pth", state)
    assert "give model.head_channels=N or model.heads=N" in refused(path)
    shape = {"channels": 32, "channel_mult": (1, 2), "blocks": 1, "attention_at": (2,)}
    monkeypatch.setitem(
        flow_matching_network.ARCHITECTURES, "imagenet", (shape, {"head_channels": 16})
    )
    assert imported(path)[1]["config"]["model"]["head_channels"] == 16


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("conv", [True, False])
@pytest.mark.parametrize("mult", [(1,), (1, 2), (2, 2, 2), (1, 2, 1, 3)])
@pytest.mark.parametrize("blocks", [1, 3])
def test_the_architecture_is_told_from_names_and_shapes(
    mult: tuple[int, ...], blocks: int, residual: bool, conv: bool
) -> None:
    model = UNetKeys(
        channels=32, channel_mult=mult, blocks=blocks, attention_at=(2, 8), head_channels=None,
        heads=1, dropout=0.0, time_scale=1.0, scale_shift_norm=residual != conv,
        residual_updown=residual, conv_resample=conv, class_conditional=conv,
    )  # fmt: skip
    with torch.device("meta"):
        state = {their_name(k): v for k, v in UNet(model, 5).state_dict().items()}
    found = flow_matching_network.architecture(
        checkpoint.Peer(Path("a.pth"), flow_matching.TRAINER, state, "plain", {}, {})
    )
    told = model.model_dump(exclude={"kind", "heads", "head_channels"})
    told["attention_at"] = tuple(n for n in told["attention_at"] if n < 2 ** len(mult))
    unseen = {"residual_updown", "conv_resample"} if len(mult) == 1 else set()
    unseen |= {"conv_resample"} if residual else set()
    assert {k: v for k, v in found.items() if k not in unseen} == {
        k: v for k, v in told.items() if k not in unseen
    }


def their_name(name: str) -> str:
    """The reference's name of one of our tensors."""
    swaps = {"time_mlp": "time_embed", "label_embedding": "label_emb", "stem": "input_blocks.0.0"}
    swaps |= {"middle": "middle_block", "decoder": "output_blocks", "norm1": "in_layers.0"}
    swaps |= {"out_norm": "out.0", "out_conv": "out.2", "conv1": "in_layers.2"}
    swaps |= {"embed": "emb_layers.1", "norm2": "out_layers.0", "conv2": "out_layers.3"}
    swaps |= {"skip": "skip_connection", "proj": "proj_out"}
    parts = [swaps.get(part, part) for part in name.split(".")]
    if parts[0] == "encoder":
        parts[:2] = ["input_blocks", str(int(parts[1]) + 1)]
        parts = ["op" if part == "conv" else part for part in parts]
    return ".".join(parts)


# --- refusals ----------------------------------------------------------------------------------


class Bomb:
    """Creates the file RAN when it is unpickled without care."""

    def __reduce__(self) -> tuple:
        return os.mkdir, (os.environ["RAN"],)


class OfTheTrainer:
    """Some class of the other trainer's code."""


@pytest.mark.parametrize("place", ["model", "args"])
@pytest.mark.parametrize(
    ("value", "named"),
    [
        (Bomb(), f"{os.mkdir.__module__}.mkdir"),
        (OfTheTrainer(), "tests.test_import_weights.OfTheTrainer"),
        (np.float64(1.0), "numpy"),
        (pathlib.PurePosixPath("/x"), "pathlib.PurePosixPath"),
    ],
)
def test_a_pickle_of_anything_else_is_refused_by_name(
    state: State, place: str, value: object, named: str,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("RAN", str(tmp_path / "ran"))
    tensors = state | ({"more": value} if place == "model" else {})
    args = {"job_dir": value} if place == "args" else {}
    sentence = refused(write(tmp_path / "a.pth", tensors, **args), HEADS[IMAGENET])
    assert f"a.pth holds {named}" in sentence and "only argparse.Namespace is admitted" in sentence
    assert ("turn the paths of its `args` into str" in sentence) == named.startswith("pathlib")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"out.2.bias": None}, "lacks 1 tensors of this network, .* called out_conv.bias"),
        ({"time_embed.0.weight": None}, "has no valid tensor time_embed.0.weight"),
        ({"more.weight": torch.zeros(3)}, "has more.weight, which this network does not have"),
        ({"out.2.bias": torch.zeros(4)}, r"out.2.bias of .* is \(4,\), but .* ask for \(3,\)"),
        (
            {"out.2.bias": torch.full((3,), torch.nan)},
            "out.2.bias of .* not hold finite floats",
        ),
        ({"out.2.bias": torch.zeros(3, dtype=torch.int64)}, "does not hold finite floats"),
        ({"out.2.bias": torch.zeros(3).to_sparse()}, "out.2.bias, which is not a plain tensor"),
        ({"out.2.bias": torch.zeros(1).expand(3)}, "out.2.bias, which is not a plain tensor"),
        ({"out.2.bias": torch.zeros(3, device="meta")}, "out.2.bias, which is not a plain tensor"),
        ({"out.2.bias": "text"}, "out.2.bias, which is not a plain tensor"),
        ({"time_embed.0.weight": torch.zeros(128, 48)}, "not multiples of 48"),
        ({"time_embed.0.weight": torch.zeros(128, 16)}, "model.channels=16 is not valid"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    state: State, change: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    changed = {name: value for name, value in (state | change).items() if value is not None}
    path = write(tmp_path / "a.pth", changed)
    assert re.search(sentence, refused(path, HEADS[IMAGENET]))


def test_averages_that_do_not_fit_are_named(state: State, tmp_path: Path) -> None:
    whole, words = in_ema(state), (HEADS[IMAGENET],)
    short = {name: value for name, value in whole.items() if name != "shadow_params.3"}
    assert "averaged tensors for" in refused(write(tmp_path / "a.pth", short), *words)
    swapped = whole | {"shadow_params.1": torch.zeros(5)}
    sentence = refused(write(tmp_path / "b.pth", swapped), *words)
    assert "shadow_params.1 of" in sentence and "is (5,), not time_embed.0.bias's" in sentence
    bare = write(tmp_path / "c.pth", state)
    assert "holds no averaged weights" in refused(bare, *words, "weights=ema")


@pytest.mark.parametrize(
    "damage", ["truncated", "one bit", "empty", "text", "list", "no model", "none"]
)
def test_other_files_get_one_sentence(state: State, damage: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.pth", state)
    whole = path.read_bytes()
    buffer = io.BytesIO()
    torch.save([1, 2] if damage == "list" else {"epoch": 3}, buffer)
    middle = len(whole) // 2  # in some tensor
    kept = {"truncated": whole[:middle], "empty": b"", "text": b"hello"}
    kept["one bit"] = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    path.write_bytes(kept.get(damage, buffer.getvalue()))
    if damage == "none":
        path.unlink()
    words = {"none": "does not exist", "list": "has no `model`", "no model": "has no `model`"}
    assert words.get(damage, "is damaged or not a checkpoint") in refused(path, HEADS[IMAGENET])


def test_other_kinds_of_files_are_not_called_damaged(state: State, tmp_path: Path) -> None:
    assert f"{tmp_path} is a folder: give the checkpoint" in refused(tmp_path, HEADS[IMAGENET])
    save_file(state, path := tmp_path / "a.pth")
    said = refused(path, HEADS[IMAGENET])
    assert f"is a safetensors file of {len(state)} tensors (" in said and "damaged" not in said


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["weights=best"], "weights=best is not valid: use ema or plain"),
        (["model.head_chanels=16"], "unknown key model.head_chanels; did you mean model.head_ch"),
        (["model.heads=2"], "model.heads and model.head_channels are both given"),
        (["model.head_channels=48"], "model.head_channels=48 does not divide the 64 channels"),
        (["model.head_channels=-1"], "model.head_channels=-1 is not valid"),
        (["data.resolution=17"], "data.resolution=17 cannot be halved"),
        (["16"], "not of the form key=value"),
    ],
)
def test_wrong_words_get_one_sentence(
    state: State, words: list[str], sentence: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.pth", state)
    assert sentence in refused(path, HEADS[IMAGENET], *words)


def test_the_two_files_are_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "a.pth", {})
    before = path.read_bytes()
    for words in ([], [str(path)], [str(path), str(path)]):
        with pytest.raises(UserError, match=r"give CHECKPOINT.pth and OUT.safetensors"):
            import_weights.main(words)
    assert path.read_bytes() == before


# --- the data ----------------------------------------------------------------------------------


def test_the_pack_names_the_classes(state: State, tmp_path: Path) -> None:
    path = write(tmp_path / "a.pth", state)
    record = write_pack(tmp_path / "pack", 20, 16, classes=10)
    _, about = imported(path, HEADS[IMAGENET], f"data.path={tmp_path / 'pack'}")
    assert about["record"] == DataAbout.of(record).to_json()
    assert about["record"]["sha256"] == record.sha256.to_json()
    _, again = imported(path, HEADS[IMAGENET], f"record={tmp_path / 'pack' / 'manifest.json'}")
    assert again == about


def test_a_pack_of_other_data_is_refused(state: State, tmp_path: Path) -> None:
    path, words = write(tmp_path / "a.pth", state), [HEADS[IMAGENET]]
    write_pack(tmp_path / "few", 20, 16, classes=9)
    assert "9 classes, the checkpoint 10" in refused(path, *words, f"data.path={tmp_path / 'few'}")
    write_pack(tmp_path / "small", 20, 8, classes=10)
    small = f"data.path={tmp_path / 'small'}"
    assert "is of 8 px, the checkpoint of 16" in refused(path, *words, small)
    assert "manifest.json is missing" in refused(path, *words, f"data.path={tmp_path / 'no'}")
    (tmp_path / "list.json").write_text("[]")
    assert "is not a pack's record" in refused(path, *words, f"record={tmp_path / 'list.json'}")
    other = f"record={tmp_path / 'small' / 'manifest.json'}"
    assert "both given" in refused(path, *words, small, other)


@pytest.mark.parametrize(
    ("args", "resolution"),
    [
        ({"data_path": "/d/train_blurred_64/box/"}, 64),
        ({"data_path": "/d/train_32"}, 32),
        ({"dataset": "cifar10", "data_path": "./data"}, 32),
    ],
)
def test_the_resolution_follows_from_the_arguments(
    state: State, args: dict[str, str], resolution: int, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.pth", state, **args)
    _, about = imported(path, HEADS[IMAGENET])
    assert about["record"]["resolution"] == resolution
    assert about["record"]["classes"][:2] == ["class0000", "class0001"]
    assert imported(path, HEADS[IMAGENET], SIZE)[1]["record"]["resolution"] == 16


def test_an_unknown_resolution_is_asked_for(state: State, tmp_path: Path) -> None:
    path = write(tmp_path / "a.pth", state, data_path="/data/imagenet")
    assert "give data.resolution=N" in refused(path, HEADS[IMAGENET])
    torch.save({"model": state}, path)  # no args at all
    assert "give model.head_channels=N" in refused(path)
    assert "give data.resolution=N" in refused(path, HEADS[IMAGENET])
    assert imported(path, HEADS[IMAGENET], SIZE)[1]["config"]["imported"]["epoch"] is None


# --- end to end --------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param(IMAGENET, marks=pytest.mark.slow), CIFAR])
def test_imported_weights_are_sampled(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.pth", in_ema(peer_state(load_fixture(name)[0])))
    weights, out = tmp_path / "a.safetensors", tmp_path / "out"
    first = ["pipeline.import_weights", str(path), str(weights), HEADS[name]]
    second = ["pipeline.sample", "experiment=tiny", f"weights={weights}", f"out={out}"]
    second += ["sample.num=12", "sample.steps=2", "runtime.device=cpu"]
    second += ["sample.guidance=1"] if name == CIFAR else []  # it knows no classes
    lines = [
        subprocess.run(
            [sys.executable, "-m", *words], cwd=ROOT, check=True, text=True, capture_output=True
        ).stdout.splitlines()
        for words in (first, second)
    ]
    count = sum(t.size for k, t in load_fixture(name)[0].items() if k.startswith("state/"))
    assert len(lines[0]) == 1
    assert f"imported {count:,} parameters (ema weights, epoch 899)" in lines[0][0]
    images, about = np.load(out / "images.npy"), json.loads((out / "sample.json").read_text())
    assert images.shape == (12, 16, 16, 3) and images.std() > 10
    assert about["train"]["config"]["imported"]["weights"] == "ema"
    labels = [k % 10 for k in range(12)] if name == IMAGENET else [-1] * 12
    assert np.load(out / "labels.npy").tolist() == labels
