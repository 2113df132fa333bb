"""A fitted solver: its steps, its fit, and the search for its times."""

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pipeline.base.errors import UserError
from pipeline.compute.distributed import Ranks
from pipeline.config.schema import Sample
from pipeline.reporting.learned import LearnedSolver
from pipeline.sampling import fitting, strip
from pipeline.sampling.field import Field
from pipeline.sampling.fitting import Lesson, curved, fit, pattern_search, trajectory
from pipeline.sampling.solvers import solve
from tests.conftest import resolved

ALONE = Ranks(0, 1, torch.device("cpu"))
LABELS = torch.tensor([3, 0, 9, 3, 7, 1, 1, 4])
NONE = 10


class Wave(nn.Module):
    """A velocity that costs nothing and bends, with each class and without one differently."""

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        return torch.tanh(2 * x) + 2 * torch.sin(5 * t + labels).view(-1, 1, 1, 1)


class Growth(nn.Module):
    """dx/dt = rate x, whose solution is exp(rate t) x: in the span of the noise alone."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        return self.rate * x


def sample(*words: str) -> Sample:
    return resolved("experiment=tiny", "sample.precision=fp32", *words).sample


def noise(seed: int = 7) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(len(LABELS), 3, 4, 4, generator=generator)


def solver(times: list[float], coefficients: list[list[float]]) -> LearnedSolver:
    return LearnedSolver(
        times=times, coefficients=coefficients, sampler="learned-2-g2", weights="", guide=None,
        num=1, seed=0, error=0.0, evaluations=0, tries=[],
    )  # fmt: skip


def field(net: nn.Module, learned: LearnedSolver | None = None, *words: str) -> Field:
    exact = ("sample.solver=dopri5", "sample.rtol=1e-6", "sample.atol=1e-6")
    return Field(sample(*exact, *words), net, LABELS, NONE, learned=learned)


def lesson(net: nn.Module, seed: int = 7, *words: str) -> Lesson:
    exact = field(net, None, *words)
    return Lesson(exact, trajectory(exact, noise(seed)))


def as_euler(times: list[float]) -> list[list[float]]:
    """Euler's method as rows of coefficients."""
    steps = [after - before for before, after in pairwise(times)]
    return [[1.0, *steps[: k + 1]] for k in range(len(steps))]


def test_eulers_method_is_one_of_them_whole_or_in_slices() -> None:
    times = [0.0, 0.1, 0.35, 0.5, 0.8, 1.0]
    learned, grid = solver(times, as_euler(times)), torch.tensor(times, dtype=torch.float64)
    subject = field(Wave(), learned)
    whole = subject.solve(noise(), grid)
    assert torch.allclose(whole, solve("euler", field(Wave()), noise(), grid, 0, 0).x, atol=1e-5)
    assert (subject.evaluations == 2 * 5).all()  # guided
    # In the slices of the strip, and once more with the same field
    slices = strip.sections(grid, adaptive=False)
    assert torch.equal(list(strip.states(slices, subject.solve, noise()))[-1][1], whole)
    assert torch.equal(subject.solve(noise(), grid), whole)


def test_a_step_out_of_turn_is_a_mistake() -> None:
    times = [0.0, 0.5, 1.0]
    subject = field(Wave(), solver(times, as_euler(times)))
    with pytest.raises(AssertionError):
        subject.solve(noise(), torch.tensor([0.5, 1.0], dtype=torch.float64))


@settings(max_examples=15, deadline=None)
@given(st.floats(-3, 2), st.integers(1, 5), st.floats(-0.5, 1), st.floats(-0.5, 1))
def test_growth_is_met_by_any_steps(rate: float, steps: int, a: float, b: float) -> None:
    """The exact solution is a multiple of the noise, which every step can reach."""
    found = fit(curved(steps, math.exp(a), math.exp(b)), [lesson(Growth(rate))], ALONE)
    assert found.rmse < 1e-4 * math.exp(max(rate, 0))


@pytest.mark.parametrize("words", [(), ("sample.guidance_interval=[0.2,0.7]",)])
def test_a_fit_is_far_nearer_than_steps_of_the_same_times(words: tuple[str, ...]) -> None:
    times = curved(6, 1.2, 1.2)
    found = fit(times, [lesson(Wave(), seed, *words) for seed in (1, 2, 3)], ALONE)
    # On noise that it has not seen
    end = lesson(Wave(), 4, *words).exact.states[-1]
    grid = torch.tensor(times, dtype=torch.float64)
    learned = field(Wave(), solver(times, found.coefficients), *words).solve(noise(4), grid)
    plain = [
        solve(name, field(Wave(), None, *words), noise(4), grid, 0, 0).x
        for name in ("euler", "ab2")
    ]
    errors = [float((x - end).square().mean().sqrt()) for x in (learned, *plain)]
    assert errors[0] < 0.35 * min(errors[1:])


def test_batches_and_ranks_only_share_the_images() -> None:
    times = curved(3, 1.4, 1.1)
    one = fit(times, [lesson(Wave(), 1)], ALONE)
    both = fit(times, [lesson(Wave(), 1), lesson(Wave(), 1)], ALONE)
    for row, again in zip(one.coefficients, both.coefficients, strict=True):
        assert again == pytest.approx(row, rel=1e-6, abs=1e-9)
    assert both.rmse == pytest.approx(one.rmse, rel=1e-6)


def test_least_squares_of_vectors_that_hardly_differ() -> None:
    rng = np.random.default_rng(0)
    vectors, target = rng.normal(size=(4, 300)), rng.normal(size=300)
    products = np.concatenate([vectors @ vectors.T, (vectors @ target)[:, None]], axis=1)
    expected = np.linalg.lstsq(vectors.T, target, rcond=None)[0]
    assert fitting.least_squares(products) == pytest.approx(expected)
    # Two that are equal share the weight of one
    twice = np.concatenate([vectors, vectors[-1:]])
    products = np.concatenate([twice @ twice.T, (twice @ target)[:, None]], axis=1)
    *others, last, again = fitting.least_squares(products)
    assert [*others, last + again] == pytest.approx(expected) and last == pytest.approx(again)
    with pytest.raises(UserError, match="not finite"):
        fitting.least_squares(np.full((2, 3), np.nan))


def test_between_its_ends_a_trajectory_is_the_solution() -> None:
    path = lesson(Growth(-2.0)).exact
    assert torch.equal(path.at(0.0), noise()) and torch.equal(path.at(1.0), path.states[-1])
    for t in (0.01, 0.3, 0.5, 0.97):
        assert torch.allclose(path.at(t), math.exp(-2 * t) * noise(), atol=1e-5)


@given(st.integers(1, 40), st.floats(-1, 2), st.floats(-1, 2))
def test_curved_times_increase(steps: int, a: float, b: float) -> None:
    times = curved(steps, math.exp(a), math.exp(b))
    assert (times[0], times[-1], len(times)) == (0, 1, steps + 1)
    assert all(before < after for before, after in pairwise(times))


@pytest.mark.parametrize("place", [(0.3, 0.7), (1.3, 0.0), (0.4, 0.4)])
def test_the_search_ends_at_the_lowest_place(place: tuple[float, float]) -> None:
    def bowl(a: float, b: float) -> float:
        return (math.log(a) - place[0]) ** 2 + 2 * (math.log(b) - place[1]) ** 2

    tried = pattern_search(bowl)
    best = min(tried, key=lambda pair: tried[pair])
    assert [math.log(number) for number in best] == pytest.approx(place, abs=0.1)
    assert 5 <= len(tried) <= fitting.MOST_TRIES
    assert len(pattern_search(lambda a, b: -a)) == fitting.MOST_TRIES  # there is no lowest


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"times": [0.0, 1.0]}, "each longer by one|one row of numbers for each step"),
        ({"times": [0.0, 0.7, 0.9]}, "increasing times from 0 to 1"),
        ({"times": [0.0, 1.0, 1.0]}, "increasing times from 0 to 1"),
        ({"coefficients": [[1.0, 0.5], [1.0, 0.5]]}, "each longer by one"),
        ({"coefficients": [[1.0, math.inf], [1.0, 0.5, 0.5]]}, "finite"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, change: dict[str, object], words: str) -> None:
    whole = solver([0.0, 0.5, 1.0], [[1.0, 0.5], [1.0, 0.5, 0.5]])
    file = tmp_path / "solver.json"
    whole.write(file)
    assert LearnedSolver.read(file) == whole
    whole.model_copy(update=change).write(file)
    with pytest.raises(UserError, match=words):
        LearnedSolver.read(file)


def test_it_is_for_one_sampler() -> None:
    whole = solver([0.0, 0.5, 1.0], [[1.0, 0.5], [1.0, 0.5, 0.5]])
    whole.check(sample("sample.solver=learned", "sample.steps=2", "sample.guidance=2"))
    with pytest.raises(UserError, match="is one for learned-2-g2, and the sampler is learned-3-g2"):
        whole.check(sample("sample.solver=learned", "sample.steps=3", "sample.guidance=2"))
