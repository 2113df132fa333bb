"""DINOv2's features by the protocol of EDM2, against numpy in float64 and Pillow's resizing."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.special import erf

from pipeline.scoring import dinov2
from pipeline.scoring.dinov2 import DinoV2
from pipeline.scoring.extractors import load_extractor
from pipeline.scoring.keepers import Moments
from pipeline.scoring.kinds import KINDS
from pipeline.scoring.references import DINOV2_OF_EDM2

CPU = torch.device("cpu")
HEADS, PATCH, SIZE = 16, 14, 224


def resized(image: np.ndarray) -> np.ndarray:
    """An image (H,W,3) at 224 px (3,224,224), by Pillow: bicubic with a filter that grows."""
    colours = (Image.fromarray(image[..., k].astype(np.float32), "F") for k in range(3))
    shrunk = (c.resize((SIZE, SIZE), Image.Resampling.BICUBIC) for c in colours)
    return np.stack([np.asarray(c, np.float64) for c in shrunk])


def normed(x: np.ndarray, state: dict[str, np.ndarray], name: str) -> np.ndarray:
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return x * state[f"{name}.weight"] + state[f"{name}.bias"]


def linear(x: np.ndarray, state: dict[str, np.ndarray], name: str) -> np.ndarray:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def attention(x: np.ndarray, state: dict[str, np.ndarray], name: str) -> np.ndarray:
    q, k, v = linear(x, state, f"{name}.qkv").reshape(len(x), 3, HEADS, -1).transpose(1, 2, 0, 3)
    products = q @ k.transpose(0, 2, 1) / np.sqrt(q.shape[-1])
    weights = np.exp(products - products.max(-1, keepdims=True))
    mixed = weights / weights.sum(-1, keepdims=True) @ v
    return linear(mixed.transpose(1, 0, 2).reshape(len(x), -1), state, f"{name}.proj")


def by_numpy(image: np.ndarray, net: DinoV2, blocks: int) -> np.ndarray:
    """The class token (C,) of an image uint8 (H,W,3)."""
    state = {key: value.double().numpy() for key, value in net.state_dict().items()}
    colours = [np.array(c)[:, None, None] for c in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
    pixels = (resized(image) / 255 - colours[0]) / colours[1]
    side = SIZE // PATCH
    patches = pixels.reshape(3, side, PATCH, side, PATCH).transpose(1, 3, 0, 2, 4)
    kernel = state["patch_embed.proj.weight"]
    tokens = patches.reshape(side**2, -1) @ kernel.reshape(len(kernel), -1).T
    tokens = np.concatenate([state["cls_token"][0], tokens + state["patch_embed.proj.bias"]])
    tokens = tokens + net.positions(side)[0].double().numpy()
    for k in range(blocks):
        name = f"blocks.{k}"
        seen = attention(normed(tokens, state, f"{name}.norm1"), state, f"{name}.attn")
        tokens = tokens + seen * state[f"{name}.ls1.gamma"]
        hidden = linear(normed(tokens, state, f"{name}.norm2"), state, f"{name}.mlp.fc1")
        out = linear(hidden * (1 + erf(hidden / np.sqrt(2))) / 2, state, f"{name}.mlp.fc2")
        tokens = tokens + out * state[f"{name}.ls2.gamma"]
    return normed(tokens, state, "norm")[0]


@pytest.mark.parametrize("size", [32, 300])
def test_features_are_those_of_plain_float64(
    tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Enlarged and shrunk; the sums of the distance are in float64."""
    monkeypatch.setitem(dinov2.SHAPES, 1024, (2, HEADS))
    torch.manual_seed(0)
    net, path = DinoV2(1024), tmp_path / "dinov2.pth"
    with torch.no_grad():
        for parameter in (net.pos_embed, net.cls_token, *(b.ls1.gamma for b in net.blocks)):
            torch.nn.init.normal_(parameter, std=0.5)
    torch.save(net.state_dict(), path)
    images = np.random.default_rng(3).integers(0, 256, (3, size, size, 3), np.uint8)

    extractor = load_extractor(DINOV2_OF_EDM2, str(path), CPU)
    features, _ = extractor.features(images)
    with torch.no_grad():
        expected = np.stack([by_numpy(image, net, 2) for image in images])
    np.testing.assert_allclose(features.double().numpy(), expected, rtol=0, atol=2e-4)
    # Another network than torch-fidelity's, although the weights are the same
    theirs, _ = load_extractor("dinov2-vit-l-14", str(path), CPU).features(images)
    assert float((theirs - features).abs().max()) > 0.02
    moments = Moments(1024)
    moments.update(features)
    assert moments.mu.dtype == moments.sigma.dtype == np.float64


def test_its_scores_have_a_name_of_their_own() -> None:
    ours, theirs = KINDS[DINOV2_OF_EDM2], KINDS["dinov2-vit-l-14"]
    assert ours.published == theirs.published and ours.width == theirs.width
    assert ours.label != theirs.label and ours.title != theirs.title
