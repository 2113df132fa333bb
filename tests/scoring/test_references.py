"""Files of feature statistics: ours, those of other evaluators, and damaged ones."""

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.base.errors import UserError
from pipeline.scoring.references import (
    DINOV2_OF_EDM2,
    Reference,
    export_reference,
    load_reference,
    save_reference,
)

MU, SIGMA = np.arange(3.0), np.eye(3) * 2


def test_ours_comes_back_as_it_was(tmp_path: Path) -> None:
    texts = ("a" * 64, "dinov2-vit-s-14", "b" * 64, "train_64-box")
    whole = Reference(MU, SIGMA, 7, *texts, resolution=64)
    for number, reference in enumerate((whole, Reference(MU, SIGMA))):
        save_reference(tmp_path / f"{number}.npz", reference)
        actual = vars(load_reference(tmp_path / f"{number}.npz"))
        for key, value in vars(reference).items():
            np.testing.assert_array_equal(actual[key], value)


def test_adm_and_edm_files_are_read(tmp_path: Path) -> None:
    more = {"mu_s": np.zeros(2), "sigma_s": np.eye(2), "arr_0": np.zeros((1, 4, 4, 3), np.uint8)}
    np.savez(tmp_path / "adm.npz", mu=MU.astype(np.float32), sigma=SIGMA, **more)
    np.savez(tmp_path / "edm.npz", mu=MU, sigma=SIGMA)
    for name in ("adm", "edm"):
        actual = load_reference(tmp_path / f"{name}.npz")
        assert actual.mu.dtype == np.float64 and actual.extractor is None
        np.testing.assert_array_equal(actual.sigma, SIGMA)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_edm2_files_are_read(tmp_path: Path, protocol: int) -> None:
    other = {"mu": np.zeros(5), "sigma": np.eye(5)}
    value = {"num_images": 9, "fid": {"mu": MU, "sigma": SIGMA}, "fd_dinov2": other}
    (tmp_path / "edm2.pkl").write_bytes(pickle.dumps(value, protocol))
    actual = load_reference(tmp_path / "edm2.pkl")
    np.testing.assert_array_equal(actual.mu, MU)
    np.testing.assert_array_equal(actual.sigma, SIGMA)
    assert actual.num_images == 9
    actual = load_reference(tmp_path / "edm2.pkl", DINOV2_OF_EDM2)
    np.testing.assert_array_equal(actual.sigma, np.eye(5))
    (tmp_path / "edm2.pkl").write_bytes(pickle.dumps({"fid": value["fid"]}, protocol))
    with pytest.raises(UserError, match=r"it holds fid\)"):
        load_reference(tmp_path / "edm2.pkl", DINOV2_OF_EDM2)


class Bomb:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_pickles_that_execute_code_are_refused(tmp_path: Path) -> None:
    value = {"fid": {"mu": MU, "sigma": SIGMA}, "more": Bomb(tmp_path / "exploded")}
    (tmp_path / "bad.pkl").write_bytes(pickle.dumps(value))
    with pytest.raises(UserError, match="was refused"):
        load_reference(tmp_path / "bad.pkl")
    np.savez(tmp_path / "bad.npz", mu=np.array([Bomb(tmp_path / "exploded")]), sigma=SIGMA)
    with pytest.raises(UserError, match="is damaged"):
        load_reference(tmp_path / "bad.npz")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    "content",
    [
        {"mu": MU},
        {"mu": MU, "sigma": np.eye(4)},
        {"mu": MU[None], "sigma": SIGMA},
        {"mu": MU * np.nan, "sigma": SIGMA},
        {"mu": MU, "sigma": np.diag([1.0, -1.0, 1.0])},
        {"mean": MU, "cov": SIGMA},
    ],
)
def test_statistics_that_fit_nothing_are_refused(tmp_path: Path, content: dict[str, Any]) -> None:
    np.savez(tmp_path / "bad.npz", **content)
    with pytest.raises(UserError, match="is damaged or holds no mu and sigma"):
        load_reference(tmp_path / "bad.npz")
    metrics = {"fd_dinov2": {"mu": MU, "sigma": SIGMA}, "fid": content}
    (tmp_path / "bad.pkl").write_bytes(pickle.dumps(metrics))
    with pytest.raises(UserError, match="is damaged or holds no mu and sigma"):
        load_reference(tmp_path / "bad.pkl")


def test_statistics_under_other_names_are_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", mean=MU, cov=SIGMA)
    with pytest.raises(UserError, match=r"it holds cov, mean\): save the mean .* as mu"):
        load_reference(tmp_path / "other.npz")
    (tmp_path / "other.pkl").write_bytes(pickle.dumps({"fid": {"pool_3": MU}}))
    with pytest.raises(UserError, match=r"it holds pool_3\)"):
        load_reference(tmp_path / "other.pkl")


def test_export_holds_mu_and_sigma_alone(tmp_path: Path) -> None:
    export_reference(tmp_path / "plain.npz", Reference(MU, SIGMA, 7, "a" * 64))
    with np.load(tmp_path / "plain.npz") as data:
        assert sorted(data) == ["mu", "sigma"]
        np.testing.assert_array_equal(data["sigma"], SIGMA)
    with pytest.raises(UserError, match=r"does not end in \.npz"):
        export_reference(tmp_path / "plain.pkl", Reference(MU, SIGMA))
