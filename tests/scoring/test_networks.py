"""What the networks make of images: against published values and other implementations."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pipeline.base.errors import UserError
from pipeline.scoring import dinov2
from pipeline.scoring.dinov2 import DinoV2
from pipeline.scoring.extractors import Extractor, load_extractor, place
from pipeline.scoring.fidelity import declare_operators, load_torch_fidelity
from pipeline.scoring.kinds import KINDS
from pipeline.scoring.scores import frechet
from pipeline.scoring.weights import convert_fid_helper
from pipeline.scoring.weights_sources import WeightsFile, read_weights
from tests.scoring.test_extractors import cache, fid_helper
from tests.scoring.test_scores import moments_of

__all__ = ["cache"]  # a fixture

CPU = torch.device("cpu")
torch_fidelity = load_torch_fidelity()


# --- what the networks say ---------------------------------------------------------------------


def test_efficientnet_features_equal_a_direct_computation(efficientnet: Extractor) -> None:
    from efficientnet_lite_pytorch import EfficientNet

    path = KINDS["efficientnet-lite0"].find(None).path
    net = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=str(path)).eval()
    images = np.random.default_rng(0).integers(0, 256, (3, 96, 96, 3), np.uint8)  # no resizing
    pixels = (torch.from_numpy(images).permute(0, 3, 1, 2).float() - 127) / 128
    with torch.no_grad():
        expected = net.extract_features(pixels).mean((2, 3))
    features, logits = efficientnet.features(images)
    assert (efficientnet.label, efficientnet.width, logits) == ("efflite0_96", 1280, None)
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [8, 33, 128])
def test_features_do_not_depend_on_the_batch(size: int, efficientnet: Extractor) -> None:
    images = np.random.default_rng(1).integers(0, 256, (5, size, size, 3), np.uint8)
    whole, _ = efficientnet.features(images)
    single = torch.cat([efficientnet.features(images[i : i + 1])[0] for i in range(5)])
    torch.testing.assert_close(whole, single, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seed", "published"), [(123, 12.7202), pytest.param(42, 12.6388, marks=pytest.mark.slow)]
)
def test_packaged_weights_give_the_published_fid(seed: int, published: float) -> None:
    """The FID of layer 64 in the documentation of torchmetrics, older and newer.

    There the seed is set before the network is made, which draws from it too.
    """
    kind = replace(KINDS["inception-v3-compat"], layers=("64",))
    assert kind.packaged
    file = WeightsFile(fid_helper(), kind.packaged.sha256)
    state = convert_fid_helper(read_weights(file)[0])
    torch.manual_seed(seed)
    network = place(kind, state, file, CPU)
    one, two = (
        torch.randint(low, high, (100, 3, 299, 299), dtype=torch.uint8)
        for low, high in ((0, 200), (100, 255))
    )
    with torch.no_grad():
        a, b = (moments_of(torch.cat([network(x)[0] for x in s.split(20)])) for s in (one, two))
    assert frechet(a.mu, a.sigma, b.mu, b.sigma) == pytest.approx(published, abs=6e-5)


def test_packaged_weights_are_known_and_have_no_logits(cache: Path) -> None:
    fid_helper()
    extractor = load_extractor("inception-v3-compat", None, CPU)
    features, logits = extractor.features(np.zeros((1, 16, 16, 3), np.uint8))
    assert (extractor.label, extractor.known_weights, extractor.has_logits) == ("", True, False)
    assert features.shape == (1, 2048) and logits is None


def test_inception_equals_torch_fidelity(random_inception: Path) -> None:
    images = np.random.default_rng(2).integers(0, 256, (2, 32, 32, 3), np.uint8)
    network = torch_fidelity.utils.create_feature_extractor(
        "inception-v3-compat",
        ["2048", "logits_unbiased"],
        cuda=False,
        verbose=False,
        feature_extractor_weights_path=str(random_inception),
    )
    with torch.no_grad():
        expected = network(torch.from_numpy(images).permute(0, 3, 1, 2))
    extractor = load_extractor("inception-v3-compat", str(random_inception), CPU)
    assert extractor.has_logits and not extractor.known_weights
    for actual, wanted in zip(extractor.features(images), expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-4, atol=1e-4)


# --- the other networks ------------------------------------------------------------------------


def pixels(num: int, size: int) -> np.ndarray:
    """Random images."""
    return np.random.default_rng(3).integers(0, 256, (num, size, size, 3), np.uint8)


def test_dinov2_equals_torchvisions_transformer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same weights in torchvision's network, which knows no layer scale and one image size."""
    monkeypatch.setitem(dinov2.SHAPES, 384, (4, 6))
    declare_operators()
    from torchvision.models import VisionTransformer

    torch.manual_seed(0)
    ours = DinoV2(384).eval()
    torch.nn.init.normal_(ours.pos_embed, std=0.5)
    torch.nn.init.normal_(ours.cls_token)
    for layer in ours.modules():
        if isinstance(layer, torch.nn.LayerNorm):
            torch.nn.init.uniform_(layer.weight, 0.5, 1.5)
    theirs = VisionTransformer(224, 14, 4, 6, 384, 1536).eval()
    theirs.heads = torch.nn.Identity()
    state, scale = ours.state_dict(), torch.rand(384) + 0.5
    ours.blocks[0].ls1.gamma.data = scale
    ours.blocks[3].ls2.gamma.data = scale
    names = {"norm1": "ln_1", "norm2": "ln_2", "attn.proj": "self_attention.out_proj"}
    names |= {"mlp.fc1": "mlp.0", "mlp.fc2": "mlp.3"}
    actual = {"class_token": state["cls_token"], "encoder.pos_embedding": ours.positions(16)}
    for part in ("weight", "bias"):
        actual[f"conv_proj.{part}"] = state[f"patch_embed.proj.{part}"]
        actual[f"encoder.ln.{part}"] = state[f"norm.{part}"]
        for k in range(4):
            here = f"encoder.layers.encoder_layer_{k}."
            qkv = state[f"blocks.{k}.attn.qkv.{part}"]
            actual[f"{here}self_attention.in_proj_{part}"] = qkv
            for name, other in names.items():
                actual[f"{here}{other}.{part}"] = state[f"blocks.{k}.{name}.{part}"]
    for layer, name in (("0", "self_attention.out_proj"), ("3", "mlp.3")):
        weight = f"encoder.layers.encoder_layer_{layer}.{name}"
        actual[f"{weight}.weight"] = actual[f"{weight}.weight"] * scale[:, None]
        actual[f"{weight}.bias"] = actual[f"{weight}.bias"] * scale
    theirs.load_state_dict(actual)
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-3, atol=1e-4)


def test_dinov2_positions_keep_their_place_when_resized() -> None:
    net = DinoV2(384)
    ramp = torch.arange(37.0).repeat(37, 1)  # grows along a row of patches
    net.pos_embed.data[0, 1:] = ramp.flatten()[:, None]
    resized = net.positions(16)[0, 1:, 0].unflatten(0, (16, 16))
    middles = (torch.arange(16) + 0.5) / (16.1 / 37) - 0.5
    torch.testing.assert_close(resized[7][2:-2], middles[2:-2], rtol=0, atol=0.06)
    torch.testing.assert_close(net.positions(37), net.pos_embed)


@pytest.mark.parametrize(
    ("name", "width", "blocks"), [("s", 384, 12), ("b", 768, 12), ("l", 1024, 24)]
)
def test_dinov2_networks_have_the_published_shapes(name: str, width: int, blocks: int) -> None:
    with torch.device("meta"):
        net = DinoV2(width)
    shapes = {key: tuple(value.shape) for key, value in net.state_dict().items()}
    assert shapes["pos_embed"] == (1, 1370, width)
    assert shapes[f"blocks.{blocks - 1}.mlp.fc1.weight"] == (4 * width, width)
    assert f"blocks.{blocks}.ls1.gamma" not in shapes
    assert KINDS[f"dinov2-vit-{name}-14"].width == width


class Tree(torch.nn.Module):
    """A module with the tensors of a state dict under their names."""

    def __init__(self, state: dict[str, torch.Tensor]) -> None:
        super().__init__()
        for name in dict.fromkeys(key.partition(".")[0] for key in state):
            below = {k.partition(".")[2]: v for k, v in state.items() if k.startswith(f"{name}.")}
            if below:
                self.add_module(name, Tree(below))
            else:
                self.register_buffer(name, state[name])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.mark.parametrize("scripted", [False, True])
def test_dinov2_from_a_file_has_the_features_of_torch_fidelity(
    tmp_path: Path, scripted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a TorchScript archive and from a plain file; of two blocks."""
    monkeypatch.setitem(dinov2.SHAPES, 384, (2, 6))
    torch.manual_seed(0)
    model, path = DinoV2(384), tmp_path / "dinov2.pth"
    state = model.state_dict()
    torch.jit.save(torch.jit.script(Tree(state)), path) if scripted else torch.save(state, path)
    extractor = load_extractor("dinov2-vit-s-14", str(path), CPU)
    images = pixels(2, 16)
    features, logits = extractor.features(images)
    assert (features.shape, logits, extractor.label) == ((2, 384), None, "dinov2_vits14")
    assert not extractor.known_weights and not torch.equal(features[0], features[1])
    settings = SimpleNamespace(
        feature_extractor_internal_dtype=torch.float32,
        INPUT_IMAGE_SIZE=224,
        model=model,
        features_list=["dinov2"],
    )
    theirs = torch_fidelity.FeatureExtractorDinoV2.forward
    with torch.no_grad():
        (expected,) = theirs(settings, torch.from_numpy(images).permute(0, 3, 1, 2))
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)


def test_weights_of_another_network_of_the_family_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "dinov2.pth"
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in DinoV2(768).state_dict().items()}
    torch.save({name: torch.zeros(1).expand(shape) for name, shape in shapes.items()}, path)
    with pytest.raises(UserError, match="do not fit dinov2-vit-s-14"):
        load_extractor("dinov2-vit-s-14", str(path), CPU)
