"""The Fréchet distance of few images in many dimensions, whose covariances have no full rank."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.scoring.fidelity import load_torch_fidelity
from pipeline.scoring.scores import Gaussian, frechet


def exact(one: np.ndarray, two: np.ndarray) -> float:
    """By the singular values of the product of the centred features, which need no root of zero."""
    (mean_one, x), (mean_two, y) = ((side.mean(0), side - side.mean(0)) for side in (one, two))
    x, y = x / (len(one) - 1) ** 0.5, y / (len(two) - 1) ** 0.5
    shared = np.linalg.svd(x @ y.T, compute_uv=False).sum()
    return float(np.square(mean_one - mean_two).sum() + (x**2).sum() + (y**2).sum() - 2 * shared)


def moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return features.mean(0), np.cov(features.T)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    nums=st.tuples(st.integers(2, 60), st.integers(2, 60)),
    width=st.integers(2, 40),
    scale=st.floats(0.01, 100),
)
def test_it_is_exact_for_any_numbers(
    seed: int, nums: tuple[int, int], width: int, scale: float
) -> None:
    rng = np.random.default_rng(seed)
    one, two = (rng.normal(size=(num, width)) * scale + 1 for num in nums)
    expected = exact(one, two)
    for pair in ((one, two), (two, one)):
        (mu, sigma), other = (moments(side) for side in pair)
        assert frechet(mu, sigma, *other) == pytest.approx(expected, rel=1e-6, abs=1e-9 * scale**2)


def test_it_is_torch_fidelitys_but_for_rounding() -> None:
    rng = np.random.default_rng(0)
    one, two = rng.normal(size=(50, 96)), rng.normal(size=(70, 96)) + 0.1
    sides = [dict(zip(("mu", "sigma"), moments(side), strict=True)) for side in (one, two)]
    theirs = load_torch_fidelity().metric_fid.fid_statistics_to_metric(*sides, False)
    ours = frechet(*sides[0].values(), *sides[1].values())
    assert ours == pytest.approx(theirs["frechet_inception_distance"], rel=1e-6)
    assert ours == pytest.approx(exact(one, two), rel=1e-7)


def test_equal_images_everywhere_have_a_distance() -> None:
    """A covariance of zeros has no eigenvalue above the rounding."""
    zeros = np.zeros((4, 4))
    assert Gaussian(np.ones(4), zeros).distance(np.zeros(4), zeros) == 4
    assert Gaussian(np.ones(4), zeros).distance(np.zeros(4), np.eye(4)) == 8
