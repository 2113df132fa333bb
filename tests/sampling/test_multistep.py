"""Multistep solvers: weights from the literature, known solutions, edges of guidance, the strip."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pipeline.config.samplers import most_evaluations
from pipeline.config.schema import Sample
from pipeline.sampling import along_sigma, strip, time_grids
from pipeline.sampling.field import Field
from pipeline.sampling.multistep import Past, adams_bashforth, step_weights
from pipeline.sampling.ode import Solution
from pipeline.sampling.solvers import MULTISTEP, solve
from tests.conftest import resolved

ORDERS = {"ab2": 2, "ab3": 3}
NONE = 10  # the label for "no class"
LABELS = torch.tensor([3, 0, 9, 3, 7])


def sample(*words: str) -> Sample:
    return resolved("experiment=tiny", *words).sample


def noise(rows: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(rows, 3, 4, 4, generator=torch.Generator().manual_seed(7), dtype=dtype)


class Wave(nn.Module):
    """A velocity that costs nothing and bends, with each class and without one differently."""

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        return torch.tanh(x) + 2 * torch.sin(5 * t + labels).view(-1, 1, 1, 1)


def field(*words: str) -> Field:
    return Field(sample("sample.precision=fp32", *words), Wave(), LABELS, NONE)


def test_weights_are_those_of_the_literature() -> None:
    """Hairer, Norsett & Wanner 1993, III.1 for equal steps; order 2 for any: h (1 + r/2, -r/2)."""
    assert step_weights([0.3], 0.5) == pytest.approx([0.2])
    assert step_weights([0.0, 0.1], 0.2) == pytest.approx([-0.05, 0.15])
    expected = np.array([5, -16, 23]) / 12 * 0.1
    assert step_weights([0.0, 0.1, 0.2], 0.3) == pytest.approx(expected)
    ratio = 0.3 / 0.1  # of this step to the last
    expected = 0.3 * np.array([-ratio / 2, 1 + ratio / 2])
    assert step_weights([0.2, 0.3], 0.6) == pytest.approx(expected)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(sorted(ORDERS)),
    st.lists(st.floats(0.02, 1), min_size=4, max_size=8),
    st.booleans(),
)
def test_polynomials_below_the_order_are_exact_on_any_grid(
    name: str, lengths: list[float], falling: bool
) -> None:
    """With the exact slopes of the first steps behind it."""
    order = ORDERS[name]
    grid = np.cumsum([0.0, *lengths]) / sum(lengths)
    grid = 1 - grid if falling else grid
    powers = np.arange(1, order + 1)  # of the solution sum t^k / k

    def velocity(x: Tensor, t: Tensor, rows: Tensor) -> Tensor:
        return sum(t ** float(k - 1) for k in powers).view(-1, 1, 1, 1).expand_as(x)  # type: ignore[union-attr]

    x = torch.zeros(1, 1, 1, 2, dtype=torch.float64)
    rows = torch.arange(1)
    past: Past = [(t, velocity(x, torch.tensor([t]), rows)) for t in grid[: order - 1]]
    start, stop = (sum(t**k / k for k in powers) for t in (grid[order - 1], grid[-1]))
    times = torch.from_numpy(grid[order - 1 :])
    end = adams_bashforth(velocity, x + start, times, order, past).x
    torch.testing.assert_close(end, torch.full_like(x, stop), atol=1e-6, rtol=0)
    assert len(past) == order


def logistic(x: Tensor, t: Tensor, rows: Tensor) -> Tensor:
    """dx/dt = 3 x (1 - x), solved by 1 / (1 + (1 / x0 - 1) exp(-3 t))."""
    return 3 * x * (1 - x)


def uneven(steps: int) -> Tensor:
    """A grid whose steps grow more than fourfold, refined evenly."""
    s = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    return (s + s**3) / 2


def even(steps: int) -> Tensor:
    return torch.linspace(0, 1, steps + 1, dtype=torch.float64)


@pytest.mark.parametrize("grid", [even, uneven])
@pytest.mark.parametrize("name", ORDERS)
def test_convergence_order(name: str, grid: Callable[[int], Tensor]) -> None:
    x = torch.tensor([[[[0.5, 0.7, 0.8]]]], dtype=torch.float64)
    exact = 1 / (1 + (1 / x - 1) * math.exp(-3))
    errors = [
        (solve(name, logistic, x, grid(steps), 1, 1).x - exact).square().mean().sqrt().item()
        for steps in (160, 320)
    ]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(ORDERS[name], abs=0.2)


def gaussian(x: Tensor, t: Tensor, rows: Tensor) -> Tensor:
    """The velocity of normal data of mean 0 and deviation 1/2, whose paths are known."""
    t = t.view(-1, 1, 1, 1)
    return x * (t / 4 - (1 - t)) / ((t / 2) ** 2 + (1 - t) ** 2)


def along(name: str, steps: int) -> float:
    """Relative error along sigma at the last time before 1."""
    times = time_grids.edm(steps)
    x, past = noise(2), Past()
    end = along_sigma.solve(name, gaussian, x, times[:-1], past)
    first, last = (float(((t / 2) ** 2 + (1 - t) ** 2) ** 0.5) for t in (times[0], times[-2]))
    exact = x * last / first
    return float((end - exact).norm() / exact.norm())


@pytest.mark.parametrize("name", ORDERS)
def test_the_order_along_sigma(name: str) -> None:
    assert along(name, 256) / along(name, 512) > 0.8 * 2 ** ORDERS[name]


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(sorted(ORDERS)), st.sampled_from(["uniform", "edm", "sigma"]))
def test_the_strip_shows_states_of_the_same_pass(name: str, grid: str) -> None:
    words = (f"sample.solver={name}", "sample.steps=21", f"sample.grid={grid}", "sample.guidance=2")
    whole, parts, x = field(*words), field(*words), noise(5, torch.float32)
    sections = strip.sections(time_grids.times(parts.sample), adaptive=False)
    columns = list(strip.states(sections, parts.solve, x))
    assert torch.equal(columns[-1][1], whole.solve(x, time_grids.times(whole.sample)))
    assert torch.equal(parts.evaluations, whole.evaluations)


@pytest.mark.parametrize("name", ORDERS)
def test_a_field_that_starts_again_forgets_the_last_pass(name: str) -> None:
    again, x = field(f"sample.solver={name}"), noise(5, torch.float32)
    first = again.solve(x, even(6))
    assert torch.equal(again.solve(x, even(6)), first)


@pytest.mark.parametrize("name", ORDERS)
def test_steps_start_anew_after_an_edge_of_the_guidance_interval(name: str) -> None:
    words = (f"sample.solver={name}", "sample.guidance=3")
    grid, x = even(12), noise(5, torch.float32)
    guided = field(*words, "sample.guidance_interval=[0.3,0.6]")
    end = guided.solve(x, grid)
    # Evaluations at 0 to 3/12 are not guided, those at 4/12 to 7/12 are, those after them are not
    for guidance, section in (("1", grid[:5]), ("3", grid[4:9]), ("1", grid[8:])):
        x = field(words[0], f"sample.guidance={guidance}").solve(x, section)
    assert torch.equal(end, x)
    assert guided.evaluations.tolist() == [12 + 3 + 4 + 1] * 5  # starts, guided ones


@pytest.mark.parametrize("name", ORDERS)
def test_evaluations_are_one_more_than_steps(name: str) -> None:
    for words, each in ((("sample.guidance=1",), 10), (("sample.guidance=2",), 20)):
        for grid in ("uniform", "sigma"):
            keys = (f"sample.solver={name}", "sample.steps=9", f"sample.grid={grid}", *words)
            subject = field(*keys)
            subject.solve(noise(5, torch.float32), time_grids.times(subject.sample))
            assert subject.evaluations.tolist() == [each] * 5
            assert most_evaluations(subject.sample) == each


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(sorted(ORDERS)), st.lists(st.integers(0, 4), min_size=1, max_size=7))
def test_an_image_does_not_depend_on_its_batch(name: str, rows: list[int]) -> None:
    x, keys = noise(5, torch.float32), sample(f"sample.solver={name}", "sample.guidance=2")
    whole = Field(keys, Wave(), LABELS, NONE).solve(x, even(8))
    part = Field(keys, Wave(), LABELS[rows], NONE).solve(x[rows], even(8))
    torch.testing.assert_close(part, whole[rows], atol=1e-5, rtol=1e-5)


def test_dtype_shape_and_count_of_a_solution() -> None:
    for name in MULTISTEP:
        for dtype in (torch.float32, torch.float64):
            x = noise(2, dtype)
            done: Solution = solve(name, logistic, x, even(4), 1, 1)
            assert (done.x.dtype, done.x.shape) == (x.dtype, x.shape)
            assert done.evaluations.tolist() == [5, 5] and done.evaluations.dtype == torch.int64
