"""Measures of predictions against the Large Concept Model's own."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.concept.loss import contrastive_accuracy, l2_distance, squared_error
from tests.concept import oracle


def test_distance_and_contrastive_accuracy_are_theirs() -> None:
    wanted = {key: torch.from_numpy(value) for key, value in oracle.arrays("metric/").items()}
    predicted, target = wanted["prediction"], wanted["target"]
    assert torch.allclose(l2_distance(predicted, target), wanted["l2"], rtol=1e-6)
    ours = contrastive_accuracy(predicted, target).flatten()
    assert torch.allclose(ours, wanted["contrastive_accuracy"], rtol=0, atol=1e-6)


def test_the_right_vector_beats_all_others_and_noise_half_of_them() -> None:
    target, noise = torch.randn(2, 40, 3, 5, generator=torch.Generator().manual_seed(1))
    assert (contrastive_accuracy(target, target) == 1).all()
    assert float(contrastive_accuracy(noise, target).mean()) == pytest.approx(0.5, abs=0.05)


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
