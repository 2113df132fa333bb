"""The denoising strip: the states of the sampler's own grid, each in its cell."""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.config.schema import Sample
from pipeline.sampling import solvers, strip, time_grids
from pipeline.sampling.dopri5 import dopri5
from tests.conftest import resolved


def sample(*words: str) -> Sample:
    return resolved("experiment=tiny", *words).sample


def slices(keys: Sample) -> list[Tensor]:
    return strip.sections(time_grids.times(keys), keys.adaptive)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(["uniform", "edm"]), st.integers(1, 300))
def test_sections_are_slices_of_the_grid(name: str, steps: int) -> None:
    keys = sample(f"sample.grid={name}", f"sample.steps={steps}")
    parts = slices(keys)
    assert torch.equal(
        torch.cat([parts[0][:1], *(part[1:] for part in parts)]), time_grids.times(keys)
    )
    assert all(one[-1] == other[0] for one, other in pairwise(parts))
    assert 1 <= len(parts) < strip.COLUMNS
    if name == "uniform":
        sizes = [len(part) - 1 for part in parts]
        assert len(parts) == min(steps, strip.COLUMNS - 1) and max(sizes) - min(sizes) <= 1


def wave(x: Tensor, t: Tensor, rows: Tensor) -> Tensor:
    return torch.sin(5 * t).view(-1, 1, 1, 1) + torch.tanh(x)


def by(keys: Sample) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, times: solvers.solve(keys.solver, wave, x, times, keys.rtol, keys.atol).x


@pytest.mark.parametrize("name", ["euler", "heun", "rk4"])
def test_states_of_a_fixed_grid_are_exact(name: str) -> None:
    keys, x = sample(f"sample.solver={name}", "sample.steps=21"), torch.randn(2, 3, 4, 4)
    times = time_grids.times(keys)
    found = list(strip.states(slices(keys), by(keys), x))
    assert len(found) == strip.COLUMNS and found[0][0] == 0 and found[-1][0] == 1
    for time, state in found:
        until = times[times <= time]
        assert until[-1] == time
        assert torch.equal(state, solvers.solve(name, wave, x, until, 1, 1).x)


def test_states_of_dopri5_are_within_its_tolerance() -> None:
    keys, x = sample("sample.solver=dopri5"), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    found = dict(strip.states(slices(keys), by(keys), x))
    assert list(found) == [k / 8 for k in range(9)]
    exact = dopri5(wave, x, 1e-11, 1e-11, stop=0.625).x
    torch.testing.assert_close(found[0.625], exact, atol=1e-4, rtol=0)
    assert torch.equal(found[0.0], x)
