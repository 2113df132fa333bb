"""Time grids: EDM's noise levels from their own formula, and where a late grid starts."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config.schema import Sample
from pipeline.flow import probability_path
from pipeline.sampling import time_grids
from tests.conftest import resolved


def sample(*words: str) -> Sample:
    return resolved("experiment=tiny", *words).sample


def karras(steps: int) -> np.ndarray:
    """Noise levels of eq. 5 with rho 7, in numpy: equal steps of sigma^(1/7)."""
    roots = np.linspace(80 ** (1 / 7), 0.002 ** (1 / 7), steps)
    return np.append(roots**7, 0)


@pytest.mark.parametrize("steps", [1, 2, 18, 50])
def test_edm_levels(steps: int) -> None:
    times = time_grids.times(sample("sample.grid=edm", f"sample.steps={steps}")).numpy()
    sigma = (1 - times) / times  # standard deviation of the noise over scale of the image
    np.testing.assert_allclose(sigma, karras(steps), rtol=1e-9, atol=1e-15)
    assert times[0] == pytest.approx(1 / 81) and times[-1] == 1 and times.dtype == np.float64


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(["uniform", "edm"]), st.integers(1, 400))
def test_every_grid_increases_to_one(name: str, steps: int) -> None:
    times = time_grids.times(sample(f"sample.grid={name}", f"sample.steps={steps}"))
    assert len(times) == steps + 1 and times.dtype == torch.float64
    assert (times.diff() > 0).all() and times[0] >= 0 and times[-1] == 1


def test_uniform_listed_and_adaptive() -> None:
    assert time_grids.times(sample("sample.steps=4")).tolist() == [0, 0.25, 0.5, 0.75, 1]
    listed = sample("sample.grid=[0.1,0.5,1]", "sample.steps=7")
    assert time_grids.times(listed).tolist() == [0.1, 0.5, 1]
    adaptive = sample("sample.solver=dopri5", "sample.grid=edm")
    assert time_grids.times(adaptive).tolist() == [0, 1]


def test_a_late_grid_starts_on_the_path_of_the_mean() -> None:
    x0 = torch.randn(2, 3, 4, 4)
    early, late = (torch.tensor([t, 1.0], dtype=torch.float64) for t in (0.0, 1 / 81))
    assert torch.equal(time_grids.start_state(x0, early), x0)
    start = time_grids.start_state(x0, late)
    path = probability_path.interpolate(x0, torch.zeros_like(x0), torch.full((2,), 1 / 81))
    torch.testing.assert_close(start, path)
    # EDM's start is 80 x0 in a state that is scaled by 1 / t
    torch.testing.assert_close(start * 81, 80 * x0)
