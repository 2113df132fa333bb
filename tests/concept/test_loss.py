"""The loss is a sum over targets, whatever the padding."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.concept.loss import squared_error


@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(0, 3))
def test_the_loss_is_a_sum_over_documents_whatever_the_padding(
    lengths: list[int], padding: int
) -> None:
    generator = torch.Generator().manual_seed(len(lengths))
    shape = len(lengths), max(lengths) + padding, 4
    predicted, vectors = torch.randn(2, *shape, generator=generator)
    together = squared_error(predicted, vectors, torch.tensor(lengths))
    apart = sum(
        float((predicted[i, : n - 1] - vectors[i, 1:n]).square().sum())
        for i, n in enumerate(lengths)
    )
    assert float(together) == pytest.approx(apart, rel=1e-5, abs=1e-6)
