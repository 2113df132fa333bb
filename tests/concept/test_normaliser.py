"""Medians and scales against the Large Concept Model's, and as a file."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.base.errors import UserError
from pipeline.concept.normaliser import Normaliser, Scale, fit
from tests.concept import oracle


@pytest.mark.parametrize(
    ("scale", "key"), [("lcm_tails", "scale"), ("quartiles", "scale_if_percent_25_75")]
)
def test_center_and_scale_are_theirs(scale: Scale, key: str) -> None:
    wanted = oracle.arrays("normalizer/")
    fitted = fit(wanted["fit_input"], scale)
    np.testing.assert_allclose(fitted.center, wanted["center"], rtol=1e-8)
    np.testing.assert_allclose(fitted.scale, wanted[key], rtol=1e-8)
    assert fitted.constant == ()


def test_quartiles_give_the_standard_deviation_of_normal_vectors() -> None:
    vectors = np.random.default_rng(2).normal(3.0, [1.0, 5.0], (20_000, 2)).astype(np.float32)
    fitted = fit(vectors, "quartiles")
    np.testing.assert_allclose(fitted.center, 3.0, atol=0.1)
    np.testing.assert_allclose(fitted.scale, [1.0, 5.0], rtol=0.03)


@pytest.mark.parametrize("scale", ["quartiles", "lcm_tails"])
def test_dimensions_without_a_spread_are_listed_and_only_centered(scale: Scale) -> None:
    vectors = np.random.default_rng(3).normal(size=(999, 70)).astype(np.float32)
    vectors[:, 5] = 0.25
    vectors[: 999 // 9, 69] = 1.0  # an indicator that is mostly 0
    vectors[999 // 9 :, 69] = 0.0
    fitted = fit(vectors, scale)
    assert fitted.constant == (5, 69)
    assert fitted.scale[5] == fitted.scale[69] == 1.0 and fitted.center[5] == 0.25


def test_a_file_gives_it_back(tmp_path: Path) -> None:
    written = Normaliser(np.float32([1, 2]), np.float32([3, 4]), (1,))
    written.write(tmp_path / "normaliser.npz")
    read = Normaliser.read(tmp_path / "normaliser.npz")
    assert read.sha256 == written.sha256 and read.constant == (1,)
    assert Normaliser(written.center, written.scale[::-1]).sha256 != written.sha256


def test_a_missing_or_damaged_file_is_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "normaliser.npz"
    with pytest.raises(UserError, match=r"is missing: run `python -m pipeline.prepare`"):
        Normaliser.read(file)
    Normaliser(np.float32([1]), np.float32([1])).write(file)
    file.write_bytes(file.read_bytes()[:80])
    with pytest.raises(UserError, match="is not a readable normaliser"):
        Normaliser.read(file)
