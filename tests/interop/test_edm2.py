"""Network pickles of EDM2 become weights of ours with the same denoiser; others are refused.

The fixture tests/fixtures/edm2_tiny.npz holds tensors and outputs of the reference; the pickle is
made around them by tests/interop/live_pickles.py.
"""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.config.model_keys import EDM2Keys, read_model
from pipeline.networks.edm2 import EDM2
from tests.conftest import ROOT, load_fixture, write_pack
from tests.interop.live_pickles import Live, Plain, bombs, live_network, snapshot, write
from tests.test_import_weights import imported, refused

FIXTURE, ARGUMENTS = load_fixture("edm2_tiny")
State = dict[str, Tensor]


@pytest.fixture(autouse=True)
def ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that any run of code in a pickle makes."""
    monkeypatch.setenv("RAN", str(tmp_path / "ran"))
    return tmp_path / "ran"


def reference_state(dtype: torch.dtype = torch.float32) -> State:
    """The reference's tensors by its names."""
    names = [name for name in FIXTURE.files if name.startswith("state/")]
    return {name[6:]: torch.from_numpy(FIXTURE[name]).to(dtype) for name in names}


def network(state: State | None = None, **changed: Any) -> Live:
    """The live network, with some of its arguments changed; None: left out."""
    arguments = {k: v for k, v in (ARGUMENTS | changed).items() if v is not None}
    return live_network(reference_state() if state is None else state, Live("Precond", **arguments))


def pickled(folder: Path, state: State | None = None, **changed: Any) -> Path:
    return write(folder / "a.pkl", snapshot(network(state, **changed)))


# --- the network -------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("conditional", [True, False])
def test_velocity_equals_the_reference(
    conditional: bool, protocol: int, tmp_path: Path, ran: Path
) -> None:
    path = write(tmp_path / "a.pkl", snapshot(network()), protocol)
    tensors, about = imported(path)
    model = read_model(about["config"]["model"])
    assert isinstance(model, EDM2Keys)
    net = EDM2(model, len(about["record"]["classes"])).eval()
    net.load_state_dict(tensors)
    sigma = torch.from_numpy(FIXTURE["sigma"])
    t = (1 / (1 + sigma)).view(-1, 1, 1, 1)
    x_t = t * torch.from_numpy(FIXTURE["x"])
    denoised = FIXTURE["denoised" if conditional else "denoised_unconditional"]
    expected = (torch.from_numpy(denoised) - x_t) / (1 - t)
    labels = torch.from_numpy(FIXTURE["class_index"]) if conditional else torch.full((3,), 5)
    with torch.no_grad():
        torch.testing.assert_close(net(x_t, t.flatten(), labels), expected, atol=1e-4, rtol=0)
    assert not ran.exists()


def test_the_keys_are_the_constructors_arguments(tmp_path: Path) -> None:
    _, about = imported(pickled(tmp_path))
    assert about["config"]["model"] == {
        "kind": "edm2", "channels": 16, "channel_mult": [1, 2], "blocks": 1, "attention_at": [2],
        "head_channels": 16, "dropout": 0.0, "class_conditional": True, "sigma_data": 0.5,
        "uncertainty_channels": 16,
    }  # fmt: skip
    assert about["config"]["data"] == {"source": "unknown", "resolution": 16, "recipe": "unknown"}
    assert about["record"]["classes"] == [f"class{k:04d}" for k in range(5)]
    assert about["config"]["train"] == {"label_dropout": 0.0}
    origin = about["config"]["imported"]
    assert origin["trainer"] == "NVlabs/edm2" and origin["weights"] == "ema"
    assert "stored" not in origin


def test_arguments_by_place_and_by_default(tmp_path: Path) -> None:
    state = {name: torch.zeros(shape) for name, shape in shapes_of_64_px().items()}
    whole = live_network(state, Live("Precond", 64, 3, 0, model_channels=64, use_fp16=True))
    tensors, about = imported(write(tmp_path / "a.pkl", snapshot(whole)))
    model = about["config"]["model"]
    assert model["channel_mult"] == [1, 2, 3, 4] and model["blocks"] == 3
    assert model["attention_at"] == [4, 8] and model["head_channels"] == 64
    assert (model["sigma_data"], model["uncertainty_channels"]) == (0.5, 128)
    assert model["class_conditional"] is False and about["record"]["classes"] == []
    assert "label_embedding.weight" not in tensors


def shapes_of_64_px() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the network without classes that has 64 channels and all defaults."""
    widths, shapes = [64, 128, 192, 256], {}
    shapes |= {"logvar_fourier.freqs": (128,), "logvar_fourier.phases": (128,)}
    shapes |= {"unet.emb_fourier.freqs": (64,), "unet.emb_fourier.phases": (64,)}
    shapes |= {"logvar_linear.weight": (1, 128), "unet.emb_noise.weight": (256, 64)}
    shapes |= {"unet.out_gain": (), "unet.out_conv.weight": (3, 64, 3, 3)}
    shapes |= {"unet.enc.64x64_conv.weight": (64, 4, 3, 3)}

    def block(name: str, cin: int, cout: int, size: int, *, plain: bool = False) -> None:
        inner = cout if ".enc." in name else cin
        parts = {"emb_gain": (), "conv_res0.weight": (cout, inner, 3, 3)}
        parts |= {"emb_linear.weight": (cout, 256), "conv_res1.weight": (cout, cout, 3, 3)}
        if cin != cout:
            parts["conv_skip.weight"] = (cout, cin, 1, 1)
        if size in (8, 16) and not plain:
            parts |= {"attn_qkv.weight": (3 * cout, cout, 1, 1)}
            parts |= {"attn_proj.weight": (cout, cout, 1, 1)}
        shapes.update({f"{name}.{part}": shape for part, shape in parts.items()})

    channels, skips = 64, [64]
    for level, width in enumerate(widths):
        size = 64 >> level
        if level:
            block(f"unet.enc.{size}x{size}_down", channels, channels, size, plain=True)
            skips.append(channels)
        for n in range(3):
            block(f"unet.enc.{size}x{size}_block{n}", channels, width, size)
            channels = width
            skips.append(channels)
    block("unet.dec.8x8_in0", 256, 256, 8)
    block("unet.dec.8x8_in1", 256, 256, 8, plain=True)
    for level, width in reversed(list(enumerate(widths))):
        size = 64 >> level
        if level < 3:
            block(f"unet.dec.{size}x{size}_up", channels, channels, size, plain=True)
        for n in range(4):
            block(f"unet.dec.{size}x{size}_block{n}", channels + skips.pop(), width, size)
            channels = width
    return shapes


def test_a_network_without_classes(tmp_path: Path) -> None:
    state = reference_state()
    del state["unet.emb_label.weight"]
    path = pickled(tmp_path, state, label_dim=0)
    _, about = imported(path)
    assert about["config"]["model"]["class_conditional"] is False
    assert about["record"]["classes"] == []
    record = write_pack(tmp_path / "pack", 6, 16, classes=3)
    _, about = imported(path, f"data.path={tmp_path / 'pack'}")
    assert about["record"]["classes"] == record.classes


def test_half_precision_becomes_float32_and_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, _ = imported(pickled(tmp_path))
    assert "(ema weights)" in capsys.readouterr().out
    half, about = imported(pickled(tmp_path, reference_state(torch.float16)))
    assert "(ema weights, float16 made float32)" in capsys.readouterr().out
    assert about["config"]["imported"]["stored"] == "float16"
    assert all(value.dtype == torch.float32 for value in half.values())
    for name, value in whole.items():
        torch.testing.assert_close(half[name], value, atol=2e-3, rtol=1e-3)
    weight = "unet.out_conv.weight"
    assert torch.equal(half["out_conv.weight"], reference_state(torch.float16)[weight].float())


def test_the_pack_names_the_classes(tmp_path: Path) -> None:
    path = pickled(tmp_path)
    write_pack(tmp_path / "other", 20, 16, classes=4)
    assert "4 classes, the checkpoint 5" in refused(path, f"data.path={tmp_path / 'other'}")
    record = write_pack(tmp_path / "pack", 20, 16, classes=5)
    _, about = imported(path, f"data.path={tmp_path / 'pack'}")
    assert about["record"]["sha256"] == record.sha256.to_json()


# --- refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("top", "inner"),
    [("EDMPrecond", "SongUNet"), ("EDMPrecond", "DhariwalUNet"), ("VPPrecond", "SongUNet"),
     ("VEPrecond", "SongUNet"), ("iDDPMPrecond", "DhariwalUNet")],
)  # fmt: skip
def test_networks_of_edm_are_told_apart(top: str, inner: str, tmp_path: Path) -> None:
    whole = Live(top, img_resolution=64, img_channels=3, label_dim=1000)
    whole._modules["model"] = Live(inner)
    path = write(tmp_path / "a.pkl", snapshot(whole, augment_pipe=Live("AugmentPipe")))
    assert f"holds {inner} under {top}, a network of EDM, which is not built here" in refused(path)


@pytest.mark.parametrize(
    ("channels", "encoder"),
    [(4, "StabilityVAEEncoder"), (4, "StandardRGBEncoder"), (3, "StabilityVAEEncoder"), (4, None)],
)
def test_networks_of_latents_are_refused(
    channels: int, encoder: str | None, tmp_path: Path
) -> None:
    whole = snapshot(network(img_channels=channels), encoder=encoder and Plain(encoder))
    sentence = refused(write(tmp_path / "a.pkl", whole))
    made_by = f", made by {encoder}" if encoder else ""
    assert f"a network of {channels} channels{made_by}, which are latents" in sentence


@pytest.mark.parametrize(
    ("whole", "words"),
    [
        ({"G_ema": Live("Generator")}, "has no network `ema` (it holds G_ema)"),
        ({"ema": {"weight": torch.zeros(3)}}, "has no network `ema` (it holds ema)"),
        ([1, 2], "has no network `ema` (it holds something else)"),
        ({"ema": Live("Generator")}, "a network of the class Generator, not Precond"),
        ({"ema": Live("Precond")}, "a network of the class Precond, not Precond with a UNet"),
        ({"ema": Live("a\n\x1b[2J" * 99)}, "a network of the class a\\n\\x1b[2J"),
    ],
)
def test_other_pickles_get_one_sentence(whole: Any, words: str, tmp_path: Path) -> None:
    assert words in refused(write(tmp_path / "a.pkl", whole))


DEEP: list[Any] = []
for _ in range(300):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"model_channels": None}, "does not say model_channels of its network"),
        ({"res_balance": 0.5}, "was made with res_balance=0.5, which is not built here"),
        ({"clip_act": 255}, "was made with clip_act=255"),
        ({"depth": 3}, "was made with depth=3"),
        ({"channel_mult_noise": 2}, "was made with channel_mult_noise=2"),
        ({"channel_mult": {"a": 1}}, "was made with channel_mult=builtins.dict"),
        ({"dropout": DEEP}, "was made with dropout=builtins.list"),
        ({"label_dim": -1}, "has label_dim=-1: not a number from 0 on"),
        ({"label_dim": True}, "has label_dim=True: not a number from 0 on"),
        ({"img_resolution": "64"}, "has img_resolution=64: not a number from 1 on"),
        ({"attn_resolutions": [0]}, r"has attn_resolutions=\[0\]: not a list of numbers"),
        ({"channel_mult": [1] * 17}, "has channel_mult=.*: not a list of numbers"),
        ({"dropout": 2}, "model.dropout=2"),
        ({"channels_per_head": 7}, "model.head_channels=7 does not divide the 32 channels"),
        ({"img_resolution": 15}, "data.resolution=15 cannot be halved"),
        ({"num_blocks": 10**9}, r"not those of the network that it says it holds \(num_blocks\)"),
        ({"model_channels": 10**12}, r"it says it holds \(10+ x 1\)"),
        ({"channel_mult": [1, 10**12]}, r"it says it holds \(16 x 10+\)"),
        ({"label_dim": 10**12}, r"it says it holds \(label_dim\)"),
        ({"logvar_channels": 10**12}, r"it says it holds \(logvar_channels\)"),
        ({"num_blocks": 2}, r"8x8_block1.conv_skip.weight of .* ask for \(32, 64, 1, 1\)"),
        ({"attn_resolutions": []}, "attn_proj.weight, which this network does not have"),
        ({"attn_resolutions": [16, 8]}, "lacks .* tensors of this network, .*attention"),
        ({"img_resolution": 32}, r"16x16_block1.conv_skip.weight of .* ask for \(32, 48, 1, 1\)"),
        ({"label_dim": 0}, "has unet.emb_label.weight, which this network does not have"),
        ({"label_dim": 3}, r"emb_label.weight of .* is \(32, 5\), but .* ask for \(32, 3\)"),
    ],
)  # fmt: skip
def test_arguments_that_do_not_fit_are_named(
    arguments: dict[str, Any], words: str, tmp_path: Path
) -> None:
    assert re.search(words, refused(pickled(tmp_path, **arguments)))


def test_arguments_without_names_are_refused(tmp_path: Path) -> None:
    whole = live_network(reference_state(), Live("Precond", 16, 3, 5, False))
    assert "4 arguments without names" in refused(write(tmp_path / "a.pkl", snapshot(whole)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"unet.out_gain": None}, "lacks 1 tensors of this network, .* called out_gain here"),
        ({"unet.more.weight": torch.zeros(3)}, "has unet.more.weight, which this network does not"),
        ({"unet.out_gain": torch.zeros(4)}, r"unet.out_gain of .* is \(4,\), but .* \(1,\)"),
        ({"unet.enc.8x8_block0.attn_qkv.weight": torch.zeros(95, 32, 1, 1)}, r"\(95, 32, 1, 1\)"),
        ({"unet.out_gain": torch.tensor(torch.nan)}, "unet.out_gain of .* not hold finite floats"),
        ({"unet.out_gain": torch.zeros(0)}, "has unet.out_gain, which is not a plain tensor"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    change: dict[str, Any], words: str, tmp_path: Path
) -> None:
    state = {k: v for k, v in (reference_state() | change).items() if v is not None}
    assert re.search(words, refused(pickled(tmp_path, state)))


def test_what_is_not_a_tensor_is_named(tmp_path: Path) -> None:
    whole = network()
    whole._modules["unet"].__dict__["_parameters"]["out_gain"] = "text"
    sentence = refused(write(tmp_path / "a.pkl", snapshot(whole)))
    assert "`ema` of" in sentence and "has unet.out_gain, which is not a plain tensor" in sentence


@pytest.mark.parametrize(
    ("word", "words"),
    [
        ("weights=plain", "holds averaged weights alone: use weights=ema"),
        ("model.head_channels=16", "model.head_channels is given, but .* says it itself"),
        ("data.resolution=16", "data.resolution is given, but .* says it itself: leave it out"),
    ],
)
def test_words_that_the_file_answers_are_refused(word: str, words: str, tmp_path: Path) -> None:
    assert re.search(words, refused(pickled(tmp_path), word))


def test_hostile_pickles_are_refused_by_the_command(tmp_path: Path, ran: Path) -> None:
    named, bomb = next(iter(bombs().items()))
    whole = network()
    whole._modules["unet"].__dict__["hook"] = bomb
    path = write(tmp_path / "a.pkl", snapshot(whole))
    step = subprocess.run(
        [sys.executable, "-m", "pipeline.import_weights", path, tmp_path / "a.safetensors"],
        cwd=ROOT, text=True, capture_output=True,
    )  # fmt: skip
    assert step.returncode == 2 and f"a.pkl holds {named}, which is not" in step.stderr
    assert step.stderr.count("\n") == 1 and not ran.exists()
    assert not (tmp_path / "a.safetensors").exists()


def test_truncated_files_are_refused(tmp_path: Path) -> None:
    path = pickled(tmp_path)
    content = path.read_bytes()
    for size in (1, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        assert "is damaged or not a pickle of a network" in refused(path)


# --- from the pickle to scores -----------------------------------------------------------------


@pytest.mark.slow
def test_imported_weights_are_sampled_and_scored(tmp_path: Path, ran: Path) -> None:
    path, pack = pickled(tmp_path, reference_state(torch.float16)), tmp_path / "pack"
    write_pack(pack, 40, 16, classes=5)
    weights, out, result = tmp_path / "W.safetensors", tmp_path / "S", tmp_path / "scores.json"
    sample = ["experiment=edm2_s", f"weights={weights}", f"out={out}", "sample.num=30"]
    score = [f"images={out}", f"reference={pack}", f"out={result}", "runtime.device=cpu"]
    score += ["evaluate.extractor=efficientnet-lite0", "evaluate.kid_subset_size=10"]
    commands = [
        ["pipeline.import_weights", str(path), str(weights), f"data.path={pack}"],
        ["pipeline.sample", *sample, "sample.steps=4", "runtime.device=cpu"],
        ["pipeline.evaluate", *score],
    ]
    for words in commands:
        command = [sys.executable, "-m", *words]
        subprocess.run(command, cwd=ROOT, check=True, text=True, capture_output=True)
    images, about = np.load(out / "images.npy"), json.loads((out / "sample.json").read_text())
    assert images.shape == (30, 16, 16, 3) and images.std() > 10
    assert about["nfe_mean"] == 7  # the last step is Euler's
    assert about["train"]["config"]["imported"]["trainer"] == "NVlabs/edm2"
    assert np.load(out / "labels.npy").tolist() == [k % 5 for k in range(30)]
    assert json.loads(result.read_text())["metrics"][0]["value"] > 0
    assert not ran.exists()
