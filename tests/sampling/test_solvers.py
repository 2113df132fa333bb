"""Integrators: against torchdiffeq, scipy's tableau, known solutions; samples stand alone."""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import RK45, solve_ivp
from torch import Tensor, nn
from torchdiffeq import odeint
from torchdiffeq._impl.rk_common import rk4_step_func

from pipeline.config import schema
from pipeline.sampling import solvers
from pipeline.sampling.dopri5 import ERROR, NODES, STAGES, dopri5, dopri5_step, step_factor
from pipeline.sampling.ode import Solution, Velocity
from pipeline.sampling.solvers import FIXED_GRID, euler, heun, midpoint, rk4, solve

IN_TORCHDIFFEQ = {"euler": "euler", "midpoint": "midpoint", "heun": "heun2"}


class Network(nn.Module):
    """A small convolutional velocity; t enters as a channel."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.inner = nn.Conv2d(4, 16, 3, padding=1)
        self.outer = nn.Conv2d(16, 3, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor, rows: Tensor) -> Tensor:
        time = t.view(-1, 1, 1, 1).expand(-1, 1, *x.shape[2:])
        slope: Tensor = self.outer(torch.tanh(3 * self.inner(torch.cat([x, time], dim=1))))
        return slope


class Counting:
    """A velocity that counts its evaluations by row and keeps the times it was asked for."""

    def __init__(self, velocity: Velocity, rows: int) -> None:
        self.velocity = velocity
        self.counts = torch.zeros(rows, dtype=torch.int64)
        self.times: list[float] = []

    def __call__(self, x: Tensor, t: Tensor, rows: Tensor) -> Tensor:
        assert len(x) == len(t) == len(rows) > 0
        self.counts.index_add_(0, rows, torch.ones_like(rows))
        self.times.extend(t.tolist())
        return self.velocity(x, t, rows)


def wave(x: Tensor, t: Tensor, rows: Tensor) -> Tensor:
    """Elementwise, faster in each row than in the one before."""
    rate = 1 + 2.5 * rows.to(x.dtype).view(-1, 1, 1, 1)
    return rate * torch.sin(rate * t.view(-1, 1, 1, 1) + x) - torch.tanh(x)


def bump(x: Tensor, t: Tensor, rows: Tensor) -> Tensor:
    """Nearly steady but for a short rush around t = 0.6, which makes dopri5 reject steps."""
    return (1 + x) * (1 + 40 * torch.exp(-(((t - 0.6) / 0.02) ** 2))).view(-1, 1, 1, 1)


def growth(x: Tensor, t: Tensor, rows: Tensor) -> Tensor:
    """Exponential growth, at rates of either sign."""
    return (10 - 5 * rows.to(x.dtype)).view(-1, 1, 1, 1) * x


def still(x: Tensor, t: Tensor, rows: Tensor) -> Tensor:
    """No motion at all."""
    return torch.zeros_like(x)


def relaxation(rates: Tensor) -> Velocity:
    """dx/dt = cos t - rate (x - sin t): x - sin t decays at the rate of its row."""

    def velocity(x: Tensor, t: Tensor, rows: Tensor) -> Tensor:
        t = t.view(-1, 1, 1, 1)
        return torch.cos(t) - rates[rows].view(-1, 1, 1, 1).to(x) * (x - torch.sin(t))

    return velocity


def logistic(x: Tensor, t: Tensor, rows: Tensor) -> Tensor:
    """dx/dt = 3 x (1 - x), solved by 1 / (1 + (1 / x0 - 1) exp(-3 t))."""
    return 3 * x * (1 - x)


def riccati(x: Tensor, t: Tensor, rows: Tensor) -> Tensor:
    """dx/dt = x^2 cos t, solved by x0 / (1 - x0 sin t)."""
    return x.square() * torch.cos(t).view(-1, 1, 1, 1)


def noise(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7), dtype=dtype)


def peer_solution(name: str, field: Callable[..., Tensor], x: Tensor, times: Tensor) -> Tensor:
    """By torchdiffeq, whose method "rk4" is the 3/8 rule: of the classical one it has the step."""
    if name != "rk4":
        return odeint(field, x, times, method=IN_TORCHDIFFEQ[name])[-1]
    for t, t_next in pairwise(times):
        x = x + rk4_step_func(field, t, t_next - t, t_next, x)
    return x


@pytest.mark.parametrize("name", FIXED_GRID)
@torch.no_grad()
def test_fixed_grid_agrees_with_torchdiffeq(name: str) -> None:
    network, x, rows = Network(), noise(3, 3, 6, 6), torch.arange(3)
    times = torch.tensor([0, 0.05, 0.2, 0.45, 0.7, 0.9, 1.0], dtype=torch.float64)

    def field(t: Tensor, x: Tensor, perturb: object = None) -> Tensor:
        return network(x, t.expand(3).float(), rows)

    peer = peer_solution(name, field, x, times)
    ours = FIXED_GRID[name](network, x, times).x
    assert (ours - x).abs().max() > 0.5  # the field moves the samples
    torch.testing.assert_close(ours, peer.float(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("tolerance", [1e-3, 1e-4, 1e-5])
@torch.no_grad()
def test_dopri5_takes_the_steps_of_torchdiffeq_on_one_sample(tolerance: float) -> None:
    network = Counting(Network().double(), 1)
    x, ends = noise(1, 3, 6, 6, dtype=torch.float64), torch.tensor([0, 1], dtype=torch.float64)
    peer = odeint(
        lambda t, x: network(x, t.expand(1), torch.arange(1)),
        x,
        ends,
        method="dopri5",
        rtol=tolerance,
        atol=tolerance,
        options={"step_t": ends[1:]},  # a step ends at 1; otherwise it interpolates there
    )[-1]
    ours = dopri5(network.velocity, x, tolerance, tolerance)
    torch.testing.assert_close(ours.x, peer, atol=1e-9, rtol=0)
    assert torch.equal(ours.evaluations, network.counts)


@pytest.mark.parametrize(("rtol", "atol"), [(1e-3, 1e-6), (1e-6, 1e-3), (1e-5, 1e-5), (1e-8, 1e-8)])
@pytest.mark.parametrize("velocity", [wave, bump, growth, still])
@pytest.mark.parametrize("ends", [(0.0, 1.0), (0.55, 0.7)])
def test_dopri5_takes_the_steps_of_scipy(
    velocity: Velocity, rtol: float, atol: float, ends: tuple[float, float]
) -> None:
    x, rows = noise(5, 1, 2, 3, dtype=torch.float64), torch.arange(5)
    x[3] = 0  # the case of II.4 where the state gives no scale
    x[4] *= 1e-3
    ours = dopri5(velocity, x, rtol, atol, start=ends[0], stop=ends[1])
    for row in rows:

        def flat(t: float, y: np.ndarray, row: Tensor = row) -> np.ndarray:
            state, time = torch.from_numpy(y).view(1, 1, 2, 3), torch.from_numpy(np.array([t]))
            return velocity(state, time, row[None]).numpy().ravel()

        peer = solve_ivp(flat, ends, x[row].numpy().ravel(), method="RK45", rtol=rtol, atol=atol)
        np.testing.assert_allclose(ours.x[row].numpy().ravel(), peer.y[:, -1], rtol=1e-8, atol=1e-9)
        assert ours.evaluations[row] == peer.nfev


def test_tableau_is_that_of_scipy() -> None:
    for ours, theirs in zip(STAGES[:-1], RK45.A[1:], strict=True):
        np.testing.assert_allclose(ours, theirs[: len(ours)], rtol=1e-15)
    np.testing.assert_allclose(STAGES[-1], RK45.B, rtol=1e-15)
    np.testing.assert_allclose(NODES[:-1], RK45.C[1:], rtol=1e-15)
    np.testing.assert_allclose(np.abs(ERROR), np.abs(RK45.E), rtol=1e-12)


def dopri5_fixed(velocity: Velocity, x: Tensor, times: Tensor) -> Solution:
    """Dormand-Prince on a grid, by its own step function."""
    rows = torch.arange(len(x))
    slope = velocity(x, times[:1].expand(len(x)), rows)
    for t, h in zip(times[:-1], times.diff(), strict=True):
        t, h = t.expand(len(x)), h.expand(len(x))
        x, slope, _ = dopri5_step(velocity, x, t, h, slope, rows)
    return Solution(x, torch.full_like(rows, 6 * (len(times) - 1) + 1))


@pytest.mark.parametrize(
    ("method", "order"), [(euler, 1), (midpoint, 2), (heun, 2), (rk4, 4), (dopri5_fixed, 5)]
)
def test_convergence_order(method: Callable[..., Solution], order: int) -> None:
    x = torch.tensor([[[[0.5, 0.7, 0.8]]]], dtype=torch.float64)
    exact = 1 / (1 + (1 / x - 1) * math.exp(-3))
    errors = []
    for steps in (20, 40):
        times = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        errors.append((method(logistic, x, times).x - exact).square().mean().sqrt().item())
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.15)


def test_error_estimate_is_of_order_four() -> None:
    x = torch.tensor([[[[0.3, -0.7, 0.5]]]], dtype=torch.float64)
    rows, t = torch.arange(1), torch.zeros(1, dtype=torch.float64)
    errors = [
        dopri5_step(riccati, x, t, t + h, riccati(x, t, rows), rows)[2].norm().item()
        for h in (0.1, 0.05)
    ]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(5, abs=0.3)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=9), st.sampled_from([1e-2, 1e-4]))
def test_dopri5_of_a_sample_does_not_depend_on_the_batch(rows: list[int], tol: float) -> None:
    x = noise(7, 3, 8, 8)
    together = dopri5(wave, x[rows], tol, tol, rows=torch.tensor(rows))
    for i, row in enumerate(rows):
        alone = dopri5(wave, x[row : row + 1], tol, tol, rows=torch.tensor([row]))
        assert torch.equal(together.x[i], alone.x[0])
        assert together.evaluations[i] == alone.evaluations[0]


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Let torch split long reductions between two threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_dopri5_of_seven_large_samples_of_odd_size() -> None:
    x, rows = noise(7, 3, 111, 111), torch.arange(7)
    rates = 1 + 5.0 * rows

    def rational(x: Tensor, t: Tensor, rows: Tensor) -> Tensor:
        return rates[rows].view(-1, 1, 1, 1) * (t.view(-1, 1, 1, 1) - x) / (1 + x * x)

    together = dopri5(rational, x, 1e-4, 1e-4)
    assert together.evaluations.unique().numel() > 3
    for row in rows:
        alone = dopri5(rational, x[row, None], 1e-4, 1e-4, rows=row[None])
        assert torch.equal(together.x[row], alone.x[0])


EVALUATIONS = {"euler": 1, "midpoint": 2, "heun": 2, "rk4": 4}


@pytest.mark.parametrize("name", FIXED_GRID)
def test_solve_follows_the_grid_and_counts_evaluations(name: str) -> None:
    x, field = noise(3, 3, 4, 4), Counting(wave, 3)
    grid = torch.tensor([0.1, 0.2, 0.5, 0.8, 0.85, 1.0], dtype=torch.float64)
    solution = solve(name, field, x, grid, 1e-3, 1e-3)
    assert torch.equal(solution.x, FIXED_GRID[name](wave, x, grid).x)
    assert solution.evaluations.tolist() == field.counts.tolist() == [5 * EVALUATIONS[name]] * 3
    assert solution.evaluations.dtype == torch.int64
    assert min(field.times) == pytest.approx(0.1) and max(field.times) <= 1


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(sorted(FIXED_GRID)), st.integers(0, 7))
def test_slices_of_a_grid_give_the_states_of_the_whole(name: str, cut: int) -> None:
    x, grid = noise(2, 3, 4, 4), torch.linspace(0, 1, 8, dtype=torch.float64) ** 2
    half = solve(name, wave, x, grid[: cut + 1], 1, 1).x
    assert torch.equal(
        solve(name, wave, half, grid[cut:], 1, 1).x, solve(name, wave, x, grid, 1, 1).x
    )


def test_dopri5_counts_evaluations_and_stays_within_the_interval() -> None:
    x, field = noise(5, 3, 4, 4), Counting(wave, 5)
    solution = solve("dopri5", field, x, torch.tensor([0.25, 0.5, 0.7]), 1e-5, 1e-5)
    assert torch.equal(
        solution.x, dopri5(wave, x, 1e-5, 1e-5, start=0.25, stop=float(torch.tensor(0.7))).x
    )
    assert torch.equal(solution.evaluations, field.counts)
    assert ((solution.evaluations - 2) % 6 == 0).all()
    assert min(field.times) == 0.25 and max(field.times) == pytest.approx(0.7)


@given(st.floats(0, 1), st.floats(0, 1))
@settings(max_examples=50, deadline=None)
def test_dopri5_keeps_to_its_interval(one: float, other: float) -> None:
    start, stop = min(one, other), max(one, other) + 1e-3
    x, field = noise(1, 1, 1, 2, dtype=torch.float64), Counting(wave, 1)
    dopri5(field, x, 1e-3, 1e-3, start=start, stop=stop)
    assert min(field.times) == start and max(field.times) == pytest.approx(stop, abs=1e-15)


def test_dopri5_in_two_parts_is_within_its_tolerance_of_the_whole() -> None:
    x = noise(3, 3, 4, 4, dtype=torch.float64)
    whole = dopri5(wave, x, 1e-6, 1e-6).x
    half = dopri5(wave, x, 1e-6, 1e-6, stop=0.4).x
    parts = dopri5(wave, half, 1e-6, 1e-6, start=0.4).x
    assert 0 < (parts - whole).abs().max() < 1e-4


@pytest.mark.parametrize("speed", [0.0, 1e-7, 1e-3])
def test_slow_fields_are_asked_only_within_the_interval(speed: float) -> None:
    x = noise(2, 3, 4, 4)
    field = Counting(lambda x, t, rows: torch.full_like(x, speed), 2)
    torch.testing.assert_close(dopri5(field, x, 1e-3, 1e-3).x, x + speed)
    assert max(field.times) == 1


def test_an_easy_sample_pays_nothing_for_a_stiff_neighbour() -> None:
    velocity = relaxation(torch.tensor([1.0, 300.0]))
    x = noise(2, 3, 4, 4)
    both = dopri5(velocity, x, 1e-4, 1e-4).evaluations
    easy = dopri5(velocity, x[:1], 1e-4, 1e-4).evaluations
    assert both[0] == easy[0]
    assert 10 * both[0] < both[1]


@pytest.mark.parametrize("tolerance", [1e-3, 1e-5, 1e-7])
def test_dopri5_keeps_its_tolerance(tolerance: float) -> None:
    rates = torch.tensor([0.5, 5.0, 50.0], dtype=torch.float64)
    x = noise(3, 3, 4, 4, dtype=torch.float64)
    exact = math.sin(1) + x * torch.exp(-rates).view(-1, 1, 1, 1)
    tight = dopri5(relaxation(rates), x, 1e-11, 1e-11).x
    loose = dopri5(relaxation(rates), x, tolerance, tolerance).x
    torch.testing.assert_close(tight, exact, atol=1e-10, rtol=0)
    assert 0 < (loose - tight).abs().max() < 3 * tolerance


def test_underflow_names_the_rows() -> None:
    def velocity(x: Tensor, t: Tensor, rows: Tensor) -> Tensor:
        late = (rows == 12) & (t > 0.5)
        return wave(x, t, rows * 0) + torch.where(late, math.nan, 0.0).view(-1, 1, 1, 1)

    with pytest.raises(ArithmeticError, match=r"rows \[12\]"):
        dopri5(velocity, noise(4, 3, 4, 4), 1e-3, 1e-3, rows=torch.arange(10, 14))


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e36])
def test_a_velocity_beyond_all_bounds_is_an_error(value: float) -> None:
    with pytest.raises(ArithmeticError, match=r"rows \[0, 1\]"):
        dopri5(lambda x, t, rows: torch.full_like(x, value), noise(2, 3, 4, 4), 1e-3, 1e-3)


def test_a_solution_that_blows_up_is_an_error() -> None:
    x = torch.full((1, 1, 1, 2), 4.0)  # infinite where sin t = 1/4
    with pytest.raises(ArithmeticError, match=r"rows \[0\]"):
        dopri5(riccati, x, 1e-4, 1e-4)


@pytest.mark.parametrize(
    ("error", "factor"),
    [(0.0, 10), (1.0, 0.9), (32.0, 0.45), (1e9, 0.2), (math.inf, 0.2), (math.nan, 0.2)],
)
def test_step_factor(error: float, factor: float) -> None:
    assert step_factor(error) == pytest.approx(factor)


def test_dtype_and_shape_are_those_of_the_noise() -> None:
    for dtype in (torch.float32, torch.float64):
        x = noise(2, 3, 4, 5, dtype=dtype)
        for name in (*FIXED_GRID, "dopri5"):
            grid = torch.linspace(0, 1, 4, dtype=torch.float64)
            solution = solve(name, wave, x, grid, 1e-2, 1e-2).x
            assert (solution.dtype, solution.shape) == (x.dtype, x.shape)


def test_every_solver_of_the_schema_has_a_row() -> None:
    assert set(FIXED_GRID) == set(get_args(schema.FixedGridSolver))
    assert set(solvers.MULTISTEP) == set(get_args(schema.MultistepSolver))
    assert set(solvers.ADAPTIVE) == set(get_args(schema.AdaptiveSolver))
