"""Scores of features against their oracles."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter
from scipy.linalg import sqrtm
from torch.utils.data import Dataset

from pipeline.scoring import scores
from pipeline.scoring.extractors import LOGITS, load_extractor
from pipeline.scoring.fidelity import load_torch_fidelity
from pipeline.scoring.keepers import Batch, InceptionScore, Moments
from pipeline.scoring.kinds import KINDS
from pipeline.scoring.measure import noise_images
from pipeline.scoring.scores import frechet
from tests.drawings import drawn

CPU = torch.device("cpu")


def moments_of(features: torch.Tensor) -> Moments:
    """The moments of features (N,D)."""
    moments = Moments(features.shape[1])
    moments.update(features)
    return moments


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    num=st.integers(2, 60),
    cuts=st.lists(st.integers(0, 60), max_size=5),
    offset=st.floats(-50, 50),
)
def test_moments_do_not_depend_on_the_batches(
    seed: int, num: int, cuts: list[int], offset: float
) -> None:
    rng = np.random.default_rng(seed)
    features = (rng.normal(size=(num, 7)) * rng.uniform(0.1, 3, 7) + offset).astype(np.float32)
    moments = Moments(7)
    for part in np.split(features, sorted(min(c, num) for c in cuts)):
        moments.update(torch.from_numpy(part))
    exact = features.astype(np.float64)
    assert moments.num == num
    np.testing.assert_allclose(moments.mu, exact.mean(0), rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(moments.sigma, np.cov(exact.T), rtol=1e-10, atol=1e-10)


def test_frechet_equals_the_formula_with_a_matrix_root() -> None:
    rng = np.random.default_rng(3)
    one, two = rng.normal(size=(50, 6)), rng.normal(size=(60, 6)) @ rng.normal(size=(6, 6)) + 1
    moments = [(x.mean(0), np.cov(x.T)) for x in (one, two)]
    (mu1, sigma1), (mu2, sigma2) = moments
    root = sqrtm(sigma1 @ sigma2).real
    expected = ((mu1 - mu2) ** 2).sum() + np.trace(sigma1 + sigma2 - 2 * root)
    assert frechet(mu1, sigma1, mu2, sigma2) == pytest.approx(expected, rel=1e-9)
    assert frechet(mu1, sigma1, mu1, sigma1) == pytest.approx(0, abs=1e-9)


def test_a_set_is_never_less_than_nothing_away_from_itself() -> None:
    for seed in range(20):  # fewer images than features: roots of eigenvalues that rounding makes
        features = np.random.default_rng(seed).normal(size=(10, 40)) * 100
        mu, sigma = features.mean(0), np.cov(features.T)
        assert 0 <= frechet(mu, sigma, mu, sigma) < 0.1


class Rows(Dataset):
    """Images as torch-fidelity reads them: uint8 (3,H,W)."""

    def __init__(self, images: np.ndarray) -> None:
        self.images = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.images[index]


def test_scores_equal_torch_fidelity(
    random_inception: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FID, KID, Inception score, precision and recall of the same images, by the same weights.

    Of the first layer: the eigenvalues of a 2048 x 2048 matrix would take most of a minute.
    """
    weights, layers = str(random_inception), ("64", "logits_unbiased")
    kind = replace(KINDS["inception-v3-compat"], layers=layers, width=64)
    monkeypatch.setitem(KINDS, "inception-v3-compat", kind)
    real, made = drawn(6, 24, 0)[0], drawn(7, 24, 1)[0]
    made[:, ::2] = 255 - made[:, ::2]
    kid: dict[str, Any] = {"kid_subsets": 4, "kid_subset_size": 5}
    wanted = load_torch_fidelity().calculate_metrics(
        input1=Rows(made),
        input2=Rows(real),
        feature_extractor="inception-v3-compat",
        feature_extractor_weights_path=weights,
        **{f"feature_layer_{metric}": "64" for metric in ("fid", "kid", "prc")},
        fid=True,
        isc=True,
        prc=True,
        **kid,
        isc_splits=3,
        kid=True,
        cuda=False,
        save_cpu_ram=True,
        verbose=False,
        cache=False,
        rng_seed=7,
    )
    extractor = load_extractor("inception-v3-compat", weights, CPU)
    features, logits = extractor.features(made)
    other, _ = extractor.features(real)
    one, two = moments_of(features), moments_of(other)
    inception = InceptionScore(len(made), LOGITS, 3, 7, CPU)
    inception.add(Batch(np.arange(len(made)), features, logits))
    actual = [
        frechet(one.mu, one.sigma, two.mu, two.sigma),
        *scores.kernel_distance(features, other, 4, 5, 7),
        *inception.score(),
        *scores.precision_recall(features, other, 3),
    ]
    keys = (
        "frechet_inception_distance",
        "kernel_inception_distance_mean",
        "kernel_inception_distance_std",
        "inception_score_mean",
        "inception_score_std",
        "precision",
        "recall",
    )
    for key, value in zip(keys, actual, strict=True):  # a spread has the error of its mean
        error = 1e-5 * wanted[key.replace("std", "mean")]
        assert value == pytest.approx(wanted[key], abs=error), key


def test_frechet_of_fewer_images_than_features() -> None:
    """Covariances X'X/(n-1): the trace of the root of their product is a sum of singular values."""
    rng, num, width = np.random.default_rng(0), 50, 320
    spread = np.exp(-np.arange(width) / 100)
    one, two = (rng.standard_normal((num, width)) * spread * k + k for k in (1, 1.1))
    mu = [side.mean(0) for side in (one, two)]
    centred = [side - mean for side, mean in zip((one, two), mu, strict=True)]
    sigma = [side.T @ side / (num - 1) for side in centred]
    singular = np.linalg.svd(centred[0] @ centred[1].T, compute_uv=False).sum() / (num - 1)
    expected = ((mu[0] - mu[1]) ** 2).sum() + sum(map(np.trace, sigma)) - 2 * singular
    assert frechet(mu[0], sigma[0], mu[1], sigma[1]) == pytest.approx(expected, rel=1e-6)


def test_precision_is_of_the_made_images_and_recall_of_the_real_ones() -> None:
    """All made images in one of two real clusters: precision 1, recall one half."""
    rng = np.random.default_rng(4)
    cluster = torch.from_numpy(rng.normal(size=(40, 2)).astype(np.float32))
    real = torch.cat([cluster, cluster + 1000])
    made = cluster[:20] + 0.01
    assert scores.precision_recall(made, real, 3) == pytest.approx((1.0, 0.5), abs=0.15)


def test_distances_order_as_the_eye_does() -> None:
    """Of every fifth feature: the eigenvalues of a matrix of all take seconds."""
    images, _ = drawn(180, 32, 5)
    order = np.random.default_rng(0).permutation(180)
    half, rest = images[order[:90]], images[order[90:]]
    blurred = [Image.fromarray(x).filter(ImageFilter.GaussianBlur(1)) for x in half]
    noise = noise_images(np.arange(90), (32, 32), 0)
    extractor = load_extractor("efficientnet-lite0", None, CPU)

    def features(images: Any) -> torch.Tensor:
        return extractor.features(np.stack([np.asarray(i) for i in images]))[0][:, ::5]

    real = features(rest)
    sides = [features(x) for x in (half, blurred, noise)]
    target = moments_of(real)
    frechets = [frechet(m.mu, m.sigma, target.mu, target.sigma) for m in map(moments_of, sides)]
    kernels = [scores.kernel_distance(x, real, 10, 40, 0)[0] for x in sides]
    for same, blur, noisy in (frechets, kernels):
        assert same < blur / 2 < noisy / 2


@pytest.mark.parametrize(
    ("num", "label"), [(40, "FID-40"), (1000, "FID-1k"), (2500, "FID-2.5k"), (50_000, "FID")]
)
def test_names_and_labels(num: int, label: str) -> None:
    inception = SimpleNamespace(label="", title="Inception-v3")
    other = SimpleNamespace(label="efflite0_96", title="EfficientNet-Lite0 at 96 px")
    actual = scores.named("fid", inception, 1.0, num, "lower")  # type: ignore[arg-type]
    assert (actual.name, actual.label) == ("fid", f"{label} (Inception-v3)")
    actual = scores.named("fid", other, 1.0, num, "lower")  # type: ignore[arg-type]
    assert actual.name == "frechet_efflite0_96" and "FID" not in actual.label
