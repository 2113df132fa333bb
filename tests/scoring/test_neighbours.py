"""Which samples are searched for, and which of the real images are nearest."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.scoring.keepers import Batch
from pipeline.scoring.neighbours import SAMPLES, Nearest, queries


@given(st.lists(st.integers(0, 20), min_size=1, max_size=200), st.integers(1, 300))
def test_queries_are_different_rows_of_as_many_classes_as_there_are(
    labels: list[int], num: int
) -> None:
    rows = queries(np.array(labels), len(labels))
    assert len(set(rows)) == len(rows) <= SAMPLES
    classes = {labels[row] for row in rows}
    assert len(classes) == min(SAMPLES, len(set(labels)))
    for row in rows:
        if len(set(labels)) >= SAMPLES:
            assert labels.index(labels[row]) == row  # the first of its class
    assert queries(None, num).tolist() == list(range(min(SAMPLES, num)))


def test_a_copy_is_at_distance_zero_and_the_first_of_equal_ones_comes_first() -> None:
    features = torch.randn(40, 64, generator=torch.Generator().manual_seed(0)) + 100
    features[[7, 30]] = features[3].clone()
    nearest = Nearest(features[3:4], 3)
    for rows in (np.arange(20, 40), np.arange(20)):
        nearest.add(Batch(rows, features[torch.from_numpy(rows)], None))
    assert nearest.rows.tolist() == [[3, 7, 30]] and nearest.distances.tolist() == [[0, 0, 0]]
