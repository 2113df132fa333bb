"""sample.classes=random: uniform draws, a pure function of seed and position."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.samplers import sampler_name
from pipeline.sampling.network import class_labels
from tests.conftest import resolved

CONFIG = resolved("experiment=tiny", "sample.classes=random")


def job(num_classes: int, seed: int) -> Any:
    """The part of a job that labels depend on."""
    names = [str(number) for number in range(num_classes)]
    weights = SimpleNamespace(classes=names, data=SimpleNamespace(per_class=None))
    return SimpleNamespace(config=CONFIG, seed=seed, weights=weights)


@pytest.mark.parametrize("num_classes", [1, 3, 10, 1000])
def test_each_class_is_as_likely(num_classes: int) -> None:
    num = 200_000
    labels = class_labels(job(num_classes, 1), np.arange(num, dtype=np.int64))
    counts = np.bincount(labels, minlength=num_classes)
    deviation = np.sqrt(num / num_classes * (1 - 1 / num_classes))
    assert len(counts) == num_classes
    assert (np.abs(counts - num / num_classes) <= 5 * deviation).all()
    if num_classes > 1:
        assert counts.std() > deviation / 2  # drawn, not dealt out


@given(seed=st.integers(0, 2**32), rows=st.lists(st.integers(0, 10**6), min_size=1, max_size=20))
def test_a_label_depends_on_seed_and_position_alone(seed: int, rows: list[int]) -> None:
    index = np.array(rows, np.int64)
    together = class_labels(job(7, seed), index)
    alone = [int(class_labels(job(7, seed), index[k : k + 1])[0]) for k in range(len(rows))]
    assert together.tolist() == alone


def test_seeds_and_names_differ() -> None:
    index = np.arange(1000, dtype=np.int64)
    one, two = (class_labels(job(10, seed), index) for seed in (0, 1))
    assert 0.05 < (one == two).mean() < 0.2
    assert sampler_name(job(10, 0).config.sample).endswith("-random")
