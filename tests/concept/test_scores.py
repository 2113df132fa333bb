"""Scores of predictions: the Large Concept Model's own, and those with a value that is known."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.concept import scores
from tests.concept import oracle

GENERATOR = torch.Generator().manual_seed(1)
TARGET = torch.randn(90, 5, generator=GENERATOR)
NOISE = torch.randn(90, 5, generator=GENERATOR)
DOCUMENT = torch.arange(90) // 3


def test_distance_and_contrastive_accuracy_are_theirs() -> None:
    wanted = {key: torch.from_numpy(value) for key, value in oracle.arrays("metric/").items()}
    predicted, target = (wanted[key].flatten(0, 1) for key in ("prediction", "target"))
    distance = scores.l2_distance(predicted, target)
    assert torch.allclose(distance, wanted["l2"].flatten(), rtol=1e-6)
    ours = scores.contrastive_accuracy(predicted, target, torch.arange(15) // 5)
    assert torch.allclose(ours, wanted["contrastive_accuracy"], rtol=0, atol=1e-6)


def test_the_right_vectors_beat_all_others_and_noise_half_of_them() -> None:
    assert scores.retrieval_accuracy(TARGET, TARGET) == 1.0
    assert scores.squared_error(TARGET, TARGET) == 0.0
    assert scores.cosine(TARGET, TARGET) == pytest.approx(1)
    assert scores.cosine(-TARGET, TARGET) == pytest.approx(-1)
    assert (scores.contrastive_accuracy(TARGET, TARGET, DOCUMENT) == 1).all()
    by_chance = scores.contrastive_accuracy(NOISE, TARGET, DOCUMENT)
    assert float(by_chance.mean()) == pytest.approx(0.5, abs=0.07)
    assert scores.retrieval_accuracy(NOISE, TARGET) < 0.1


def test_retrieval_by_hand() -> None:
    target = torch.tensor([[0.0], [1.0], [5.0], [5.0]])
    predicted = torch.tensor([[0.4], [0.2], [9.0], [4.0]])
    assert scores.retrieval_accuracy(predicted, target) == 3 / 4  # the second is nearer to 0


@given(st.integers(1, 200))
def test_chunks_do_not_matter(rows: int) -> None:
    wanted = scores.contrastive_accuracy(NOISE, TARGET, DOCUMENT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scores, "ROWS", rows)
        assert torch.equal(scores.contrastive_accuracy(NOISE, TARGET, DOCUMENT), wanted)
        assert scores.retrieval_accuracy(TARGET, TARGET) == 1.0


def test_the_mean_costs_the_variance() -> None:
    variance = float(TARGET.var(0, correction=0).sum())
    assert scores.error_of_mean(TARGET, TARGET.mean(0)) == pytest.approx(variance, rel=1e-5)
    assert scores.error_of_mean(TARGET, TARGET.mean(0) + 1) == pytest.approx(variance + 5, rel=1e-5)


def test_ridge_finds_a_linear_rule_and_shrinks_to_the_mean() -> None:
    matrix = torch.randn(5, 5, generator=GENERATOR)
    after = TARGET @ matrix + 2.0
    exact = scores.fit_ridge(TARGET, after, 1e-9)
    assert scores.squared_error(exact.predict(NOISE), NOISE @ matrix + 2.0) < 1e-8
    shrunk = scores.fit_ridge(TARGET, after, 1e9)
    assert torch.allclose(shrunk.predict(NOISE), after.mean(0).expand(90, 5), atol=1e-4)


@given(st.floats(0.01, 1e3))
def test_ridge_is_the_least_of_its_objective(strength: float) -> None:
    """Its gradient vanishes: x' (x m - y) + strength m = 0."""
    ridge = scores.fit_ridge(TARGET, NOISE, strength)
    x, y = TARGET.double() - ridge.before, NOISE.double() - ridge.after
    gradient = x.mT @ (x @ ridge.matrix - y) + strength * ridge.matrix
    assert float(gradient.abs().max()) < 1e-9
