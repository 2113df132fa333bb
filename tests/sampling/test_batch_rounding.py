"""The bound of each precision on the difference between samples that were made in other batches.

They are those of README.md, config.yaml and pipeline/sample.py. That of tf32 on a GPU, which is
fp32 on a CPU, is looked at by `make gpu-check`.
"""

from pathlib import Path

import numpy as np
import pytest

from pipeline import sample
from tests.random_networks import save_network

LEVELS = {"fp32": 1, "tf32": 1, "bf16": 4}
WORDS = ["experiment=tiny", "sample.solver=heun", "sample.guidance=2", "runtime.device=cpu"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_network(tmp_path_factory.mktemp("network") / "weights.safetensors")


def images(weights: Path, out: Path, num: int, batch: int, precision: str) -> np.ndarray:
    """The first three images of `num`, int (3,H,W,3)."""
    words = [f"sample.num={num}", f"runtime.sample_batch={batch}", f"sample.precision={precision}"]
    sample.main([*WORDS, *words, f"weights={weights}", f"out={out}"])
    return np.load(out / "images.npy")[:3].astype(int)


@pytest.mark.parametrize("precision", LEVELS)
def test_other_batches_stay_within_the_bound(weights: Path, tmp_path: Path, precision: str) -> None:
    """Of another size, or smaller since there are fewer samples."""
    full = images(weights, tmp_path / "full", 5, 8, precision)
    for num, batch in ((3, 1), (5, 3), (3, 8)):
        other = images(weights, tmp_path / f"{num}-{batch}", num, batch, precision)
        assert np.abs(other - full).max() <= LEVELS[precision]
