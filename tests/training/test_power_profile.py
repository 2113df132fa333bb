"""Averages of power-function profile: numbers of the reference, and integrals done by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.types import WIDEST
from pipeline.training.power_profile import (
    Profile,
    coefficients,
    decay,
    exponent,
    inner_products,
    mismatch,
)
from tests.conftest import ROOT

FIXTURE = np.load(ROOT / "tests/fixtures/posthoc_ema.npz")
AT = {64: "coefficients_at_64Mi", 40: "coefficients_at_40Mi"}


def stored(suffix: str = "") -> list[Profile]:
    images, widths = FIXTURE[f"snapshot_images{suffix}"], FIXTURE[f"snapshot_std{suffix}"]
    return [Profile(float(w), int(n)) for n, w in zip(images, widths, strict=True)]


def test_exponents_of_the_reference() -> None:
    for width, gamma in zip(FIXTURE["stds"], FIXTURE["exponents"], strict=True):
        assert exponent(width) == pytest.approx(gamma, abs=1e-8)


@given(st.floats(1e-3, WIDEST))
def test_an_exponent_has_its_width(width: float) -> None:
    gamma = exponent(width)
    assert gamma > 0
    assert (gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3)) == pytest.approx(width**2, rel=1e-6)


def test_decays_of_the_reference() -> None:
    for width, row in zip(FIXTURE["beta_std"], FIXTURE["beta"], strict=True):
        for images, beta in zip(FIXTURE["beta_t_next"], row, strict=True):
            assert decay(width, int(images), 2048) == pytest.approx(beta, abs=1e-12)


@pytest.mark.parametrize(("mebi", "suffix"), [(64, ""), (40, "_40")])
def test_coefficients_of_the_reference(mebi: int, suffix: str) -> None:
    for width, row in zip(FIXTURE["target_std"], FIXTURE[AT[mebi]], strict=True):
        result = coefficients(stored(suffix), Profile(float(width), mebi * 2**20))
        np.testing.assert_allclose(result, row, atol=1e-6, rtol=1e-6)
        assert result.sum() == pytest.approx(1, abs=1e-12)


def test_a_scalar_weight_is_averaged_and_reconstructed_as_there() -> None:
    theta, wanted = FIXTURE["theta"], FIXTURE["target_std"]
    # every width tracked
    values = {float(w): theta[0] for w in {*FIXTURE["run_std"], *wanted}}
    snapshots = {}
    for step, weight in enumerate(theta, start=1):
        for width, value in values.items():
            beta = decay(width, step, 1)
            values[width] = beta * value + (1 - beta) * weight
            snapshots[width, step] = values[width]
    exact = [snapshots[w, len(theta)] for w in wanted]
    np.testing.assert_allclose(exact, FIXTURE["run_exact"], atol=1e-9)
    # some of two widths stored
    keys = list(zip(FIXTURE["run_std"], FIXTURE["run_snapshot"], strict=True))
    profiles = [Profile(float(w), int(n)) for w, n in keys]
    run_values = np.array([snapshots[key] for key in keys])
    np.testing.assert_allclose(run_values, FIXTURE["run_value"], atol=1e-9)
    made = [coefficients(profiles, Profile(float(w), len(theta))) @ run_values for w in wanted]
    np.testing.assert_allclose(made, FIXTURE["run_reconstructed"], atol=1e-6)


def test_inner_products_are_integrals() -> None:
    profiles = [Profile(0.05, 700), Profile(0.1, 1000), Profile(0.2, 400)]
    times = (np.arange(200_000) + 0.5) / 200
    curves = []
    for profile in profiles:
        share = np.minimum(times / profile.images, 1) ** profile.gamma
        inside = times <= profile.images
        curves.append(np.where(inside, share, 0) * (profile.gamma + 1) / profile.images)
    expected = [[(a * b).sum() / 200 for b in curves] for a in curves]
    np.testing.assert_allclose(inner_products(profiles, profiles), expected, rtol=1e-3)


@pytest.mark.parametrize("widths", [(0.05, 0.1), (0.05, 0.075, 0.1, 0.15, 0.2)])
@pytest.mark.parametrize("width", [0.04, 0.05, 0.075, 0.13])
def test_hundreds_of_snapshots_match_a_profile(width: float, widths: tuple[float, ...]) -> None:
    """As many as a training of 1024 * 2^20 images stores, of widths that are hard to tell apart."""
    profiles = [Profile(w, k * 2**23) for w in widths for k in range(1, 129)]
    wanted = Profile(width, 2**30)
    weights = coefficients(profiles, wanted)
    assert mismatch(profiles, weights, wanted) < 1e-3
    assert np.linalg.norm(weights) < 6  # else rounding of what is stored would grow


def test_a_stored_average_is_itself() -> None:
    profiles = [Profile(w, k * 1000) for w in (0.05, 0.1) for k in range(1, 9)]
    weights = coefficients(profiles, profiles[-1])
    np.testing.assert_allclose(weights, [*[0] * 15, 1], atol=1e-9)
    assert mismatch(profiles, weights, profiles[-1]) < 1e-6
