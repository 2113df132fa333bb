"""The refinement of a fitted solver: its gradient, its coordinates, and what it gains."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.sampling import refining
from pipeline.sampling.fitting import Lesson, Trajectory, curved, fit
from pipeline.sampling.ode import all_rows
from pipeline.sampling.refining import Coordinates, gradient, refine, whitening
from tests.sampling.test_learned import ALONE, Growth, Wave, field, lesson, noise

WORDS = [(), ("sample.guidance_interval=[0.2,0.7]",)]


def rmse(times: list[float], rows: list[list[float]], of: Lesson) -> float:
    """From the ends of a batch."""
    start, end = of.exact.states[0], of.exact.states[-1]
    reached = refining.course(times, rows, of.field, start)[0][-1]
    return float((reached - end).double().square().mean().sqrt())


def in_float64(seed: int, *words: str) -> Lesson:
    """A batch with made-up ends."""
    start, end = noise(seed).double(), noise(seed + 1).double()
    return Lesson(field(Wave(), None, *words), Trajectory([start, end], [], 0))


def unrolled(times: Tensor, rows: list[Tensor], of: Lesson) -> Tensor:
    """The distance by torch's own differentiation of all steps."""
    x, end = of.exact.states
    known = [x]
    for t, row in zip(times, rows, strict=True):
        known.append(of.field(x, t.expand(len(x)), all_rows(x)))
        x = torch.einsum("j,jbchw->bchw", row, torch.stack(known))
    return (x - end).square().sum((1, 2, 3)).sqrt().sum()


@pytest.mark.parametrize("words", WORDS)
def test_the_gradient_is_that_of_the_unrolled_solver(words: tuple[str, ...]) -> None:
    batch, times = in_float64(3, *words), curved(4, 1.3, 1.1)
    rng = np.random.default_rng(0)
    rows = [(0.3 * rng.normal(size=k + 2)).tolist() for k in range(4)]
    found = gradient(times, rows, batch)

    leaves = [torch.tensor(numbers, dtype=torch.float64) for numbers in (times[:-1], *rows)]
    first, *others = [leaf.requires_grad_() for leaf in leaves]
    error = unrolled(first, others, batch)
    by_times, *by_rows = torch.autograd.grad(error, [first, *others])
    expected = torch.cat([error.detach()[None], by_times[1:], *by_rows])
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-9)
    assert found.abs().min() > 1e-3  # nothing is left out


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 5), st.integers(0, 1000))
def test_coordinates_and_their_derivative(steps: int, seed: int) -> None:
    rng, batch = np.random.default_rng(seed), in_float64(seed)
    start = fit(curved(steps, 1.2, 1.4), [batch_with_way(batch)], ALONE)
    subject = Coordinates(start)
    subject.turn(refining.measure(start, [batch], 8)[1].numpy() / 8, 0.1)
    times, rows = subject.solver(np.zeros(subject.size))
    assert times == pytest.approx(start.times) and rows == start.coefficients

    # Anywhere near, along any direction, by finite differences
    at, along = (0.1 * rng.normal(size=subject.size) for _ in range(2))
    times, _ = subject.solver(at)
    assert (times[0], times[-1]) == (0, 1) and (np.diff(times) > 0).all()
    sides = [float(gradient(*subject.solver(at + s * 1e-4 * along), batch)[0]) for s in (-1, 1)]
    derivative = subject.derivative(at, gradient(*subject.solver(at), batch).numpy()[1:])
    assert along @ derivative == pytest.approx((sides[1] - sides[0]) / 2e-4, rel=1e-4, abs=1e-4)


def batch_with_way(batch: Lesson) -> Lesson:
    """The same, with states between its ends in a straight line."""
    start, end = batch.exact.states
    times = torch.linspace(0, 1, 17, dtype=torch.float64)
    states = [start + t * (end - start) for t in times]
    return Lesson(batch.field, Trajectory(states, [end - start] * 17, 0))


def test_whitened_vectors_are_orthonormal_and_those_that_agree_stay_finite() -> None:
    vectors = np.random.default_rng(0).normal(size=(4, 300)) * [[1], [10], [1e-4], [1]]
    vectors[3] = vectors[1] + 1e-3 * vectors[3]
    combined = whitening(vectors @ vectors.T).T @ vectors
    assert combined @ combined.T == pytest.approx(np.eye(4), abs=1e-4)
    twice = np.concatenate([vectors[:2], vectors[1:2]])
    combined = whitening(twice @ twice.T).T @ twice
    lengths = np.sort(np.linalg.norm(combined, axis=1))
    assert lengths[1:] == pytest.approx(1) and lengths[0] < 1e-2


@pytest.mark.parametrize("words", WORDS)
def test_it_comes_nearer_on_images_that_it_has_not_seen(words: tuple[str, ...]) -> None:
    lessons = [lesson(Wave(), seed, *words) for seed in (1, 2, 3)]
    start = fit(curved(5, 1.2, 1.2), lessons, ALONE)
    found, iterations = refine(start, lessons, ALONE)
    assert 3 <= iterations <= refining.MOST_ITERATIONS
    assert found.rmse < 0.7 * start.rmse
    unseen = lesson(Wave(), 4, *words)
    before, after = (rmse(one.times, one.coefficients, unseen) for one in (start, found))
    assert after < 0.8 * before
    # What it says of itself
    squares = [rmse(found.times, found.coefficients, one) ** 2 for one in lessons]
    assert found.rmse == pytest.approx(math.sqrt(sum(squares) / 3), rel=1e-3)


@settings(max_examples=8, deadline=None)
@given(st.floats(-3, 2), st.integers(1, 4))
def test_what_is_exact_stays_so(rate: float, steps: int) -> None:
    lessons = [lesson(Growth(rate))]
    start = fit(curved(steps, 1.2, 1.2), lessons, ALONE)
    found, _ = refine(start, lessons, ALONE)
    assert found.rmse < start.rmse + 1e-7  # rounding
    assert start.rmse < 1e-4 * math.exp(max(rate, 0))


def test_batches_only_share_the_images() -> None:
    one, two = lesson(Wave(), 1), lesson(Wave(), 2)
    start = fit(curved(3, 1.4, 1.1), [one, two], ALONE)
    found = [refine(start, lessons, ALONE)[0] for lessons in ([one, two], [two, one])]
    assert found[0].times == pytest.approx(found[1].times, rel=1e-5)
    assert found[0].rmse == pytest.approx(found[1].rmse, rel=1e-5)


def test_a_solver_that_diverges_is_no_descent(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that is too long gives no finite state: a shorter one is taken."""
    lessons = [lesson(Wave(), 1)]
    start = fit(curved(3, 1.4, 1.1), lessons, ALONE)
    calls = []

    def once_not_finite(times: list[float], rows: list[list[float]], of: Lesson) -> Tensor:
        calls.append(times)
        return gradient(times, rows, of) * (math.nan if len(calls) == 2 else 1)

    monkeypatch.setattr(refining, "gradient", once_not_finite)
    assert refine(start, lessons, ALONE)[0].rmse < start.rmse and len(calls) > 3
