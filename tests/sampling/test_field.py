"""Velocity fields: guidance is two evaluations, made in one call, where the interval says so."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pipeline.config.schema import Sample
from pipeline.sampling import solvers, time_grids
from pipeline.sampling.field import Field
from tests.conftest import resolved
from tests.random_networks import random_net

NONE = 10  # the label for "no class"


def sample(*words: str) -> Sample:
    return resolved("experiment=tiny", *words).sample


class Net(nn.Module):
    """A UNet with random weights that keeps the sizes of its batches."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.unet = random_net(resolved("experiment=tiny").model, seed)
        self.sizes: list[int] = []

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        self.sizes.append(len(x))
        return self.unet(x, t, labels)


NET, GUIDE = Net(0).requires_grad_(False), Net(1).requires_grad_(False)
LABELS = torch.tensor([3, 0, 9, 3, 7])


def state(rows: Tensor) -> Tensor:
    return torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(1))[rows]


def field(*words: str, guide: Net | None = None, no_class: int | None = NONE) -> Field:
    NET.sizes, GUIDE.sizes = [], []
    return Field(sample(*words), NET, LABELS, no_class, guide)


def expected(guidance: float, x: Tensor, t: Tensor, rows: Tensor, weak: Tensor) -> Tensor:
    strong = NET.unet(x, t, LABELS[rows])
    return weak + guidance * (strong - weak)


ROWS = torch.tensor([4, 1, 2])
TIMES = torch.tensor([0.25, 0.5, 0.75])


def test_one_call_equals_two_evaluations() -> None:
    guided, x = field("sample.guidance=2.5"), state(ROWS)
    found = guided(x, TIMES, ROWS)
    weak = NET.unet(x, TIMES, torch.full((3,), NONE))
    torch.testing.assert_close(found, expected(2.5, x, TIMES, ROWS, weak), atol=1e-5, rtol=1e-5)
    assert NET.sizes == [6] and guided.evaluations.tolist() == [0, 2, 2, 0, 2]


def test_without_guidance_there_is_one_evaluation() -> None:
    x = state(ROWS)
    for plain in (field("sample.guidance=1"), field("sample.guidance=3", no_class=None)):
        assert torch.equal(plain(x, TIMES, ROWS), NET.unet(x, TIMES, LABELS[ROWS]))
        assert NET.sizes.pop() == 3 and plain.evaluations.tolist() == [0, 1, 1, 0, 1]


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.floats(0, 1, width=32), min_size=5, max_size=5),
    st.sampled_from([(0.0, 0.5), (0.3, 0.7), (0.5, 1.0), (0.2, 0.20001)]),
    st.booleans(),
)
def test_only_times_within_the_interval_are_guided(
    times: list[float], interval: tuple[float, float], autoguided: bool
) -> None:
    low, high = interval
    words = ("sample.guidance=2", f"sample.guidance_interval=[{low},{high}]")
    guided = field(*words, guide=GUIDE if autoguided else None)
    rows, t = torch.arange(5), torch.tensor(times)
    x = state(rows)
    found = guided(x, t, rows)
    weak = GUIDE.unet(x, t, LABELS) if autoguided else NET.unet(x, t, torch.full((5,), NONE))
    inside = torch.tensor([bool(np.float32(low) <= time <= np.float32(high)) for time in times])
    strong = NET.unet(x, t, LABELS)
    wide = inside.view(-1, 1, 1, 1)
    moved = torch.where(wide, expected(2, x, t, rows, weak), strong)
    torch.testing.assert_close(found, moved, atol=1e-5, rtol=1e-5)
    assert guided.evaluations.tolist() == (1 + inside.long()).tolist()
    assert sum(NET.sizes) + sum(GUIDE.sizes) == guided.evaluations.sum()
    assert len(NET.sizes) == 1 and len(GUIDE.sizes) == (autoguided and bool(inside.any()))


def test_the_ends_of_the_interval_are_guided() -> None:
    guided = field("sample.guidance=2", "sample.guidance_interval=[0.3,0.7]")
    t = torch.tensor([0.3, 0.7, 0.2999, 0.7001, 0.5])  # float32, as the network gets them
    guided(state(torch.arange(5)), t, torch.arange(5))
    assert guided.evaluations.tolist() == [2, 2, 1, 1, 2]


@pytest.mark.parametrize("no_class", [NONE, None])
def test_a_guide_is_asked_with_the_class(no_class: int | None) -> None:
    guided, x = field("sample.guidance=1.5", guide=GUIDE, no_class=no_class), state(ROWS)
    found = guided(x, TIMES, ROWS)
    weak = GUIDE.unet(x, TIMES, LABELS[ROWS])
    torch.testing.assert_close(found, expected(1.5, x, TIMES, ROWS, weak), atol=1e-5, rtol=1e-5)
    assert NET.sizes == GUIDE.sizes == [3] and guided.evaluations.tolist() == [0, 2, 2, 0, 2]


def test_a_network_that_guides_itself_changes_nothing() -> None:
    guided, x = field("sample.guidance=4", guide=NET), state(ROWS)
    plain = NET.unet(x, TIMES, LABELS[ROWS])
    torch.testing.assert_close(guided(x, TIMES, ROWS), plain, atol=1e-5, rtol=1e-5)


def test_evaluations_over_a_fixed_grid() -> None:
    guided = field("sample.guidance=2", "sample.guidance_interval=[0.2,0.6]")
    rows = torch.arange(5)
    grid = torch.linspace(0, 1, 5, dtype=torch.float64)
    solution = solvers.solve("heun", guided, state(rows), grid, 1, 1)
    # evaluated at 0 .25 | .25 .5 | .5 .75 | .75 1, guided at .25 and .5
    assert NET.sizes == [5, 10, 10, 10, 10, 5, 5, 5]
    assert solution.evaluations.tolist() == [8] * 5
    assert guided.evaluations.tolist() == [12] * 5


def test_evaluations_of_dopri5_are_counted_for_each_image() -> None:
    guided = field("sample.guidance=2", "sample.guidance_interval=[0.2,0.6]")
    rows = torch.arange(5)
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    solution = solvers.solve("dopri5", guided, state(rows), ends, 1e-3, 1e-3)
    assert guided.evaluations.sum() == sum(NET.sizes)
    assert (guided.evaluations > solution.evaluations).all()
    assert (guided.evaluations < 2 * solution.evaluations).all()


INTERVAL = ("sample.solver=dopri5", "sample.guidance=2", "sample.guidance_interval=[0.2,0.7]")
ENDS = torch.tensor([0.0, 1.0], dtype=torch.float64)


class Wave(nn.Module):
    """A velocity that costs nothing and bends, with each class and without one differently."""

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        return torch.tanh(x) + 2 * torch.sin(5 * t + labels).view(-1, 1, 1, 1)


def wave(*words: str) -> Field:
    return Field(sample(*words), Wave(), LABELS, NONE)


def solved(*words: str, times: Tensor = ENDS, x: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """State and evaluations of five images, by the sampler of the words."""
    velocity = wave(*words)
    x = velocity.solve(state(torch.arange(5)) if x is None else x, times)
    return x, velocity.evaluations


def test_dopri5_ends_a_solve_at_each_edge_of_the_interval() -> None:
    """A step across an edge, where the velocity jumps, is not a step of order 5."""
    tolerances = ("sample.rtol=1e-3", "sample.atol=1e-3")
    x, counts = solved(*INTERVAL, *tolerances)

    # three solves, each of one smooth velocity
    by_hand, total = None, torch.zeros_like(counts)
    for guidance, ends in ((1, (0.0, 0.2)), (2, (0.2, 0.7)), (1, (0.7, 1.0))):
        words = ("sample.solver=dopri5", f"sample.guidance={guidance}", *tolerances)
        times = torch.tensor(ends, dtype=torch.float64)
        by_hand, part = solved(*words, times=times, x=by_hand)
        total += part
    assert by_hand is not None and torch.equal(x, by_hand)
    assert torch.equal(counts, total)

    # nearer to the truth than one solve across the edges, for fewer evaluations
    exact, _ = solved(*INTERVAL, "sample.rtol=1e-6", "sample.atol=1e-6")
    across = wave(*INTERVAL)
    crossed = solvers.solve("dopri5", across, state(torch.arange(5)), ENDS, 1e-3, 1e-3).x
    assert (x - exact).abs().max() < 0.5 * (crossed - exact).abs().max()
    assert counts.sum() < across.evaluations.sum()


@pytest.mark.parametrize(
    "words",
    [
        ("sample.solver=dopri5", "sample.guidance=2"),
        ("sample.solver=dopri5", "sample.guidance=1", "sample.guidance_interval=[0.2,0.7]"),
        ("sample.solver=heun", "sample.steps=5", "sample.guidance_interval=[0.2,0.7]"),
    ],
)
def test_without_edges_and_on_fixed_grids_there_is_one_solve(words: tuple[str, ...]) -> None:
    keys, velocity = sample(*words), wave(*words)
    grid = time_grids.times(keys)
    once = solvers.solve(keys.solver, velocity, state(torch.arange(5)), grid, keys.rtol, keys.atol)
    x, counts = solved(*words, times=grid)
    assert torch.equal(x, once.x) and torch.equal(counts, velocity.evaluations)
