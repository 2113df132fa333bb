"""Charts: the smoothed curve, and distances of any sign."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import charts


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=60), st.integers(0, 9))
def test_smooth_is_the_mean_of_the_neighbours(values: list[float], reach: int) -> None:
    expected = [
        np.mean(values[max(i - reach, 0) : i + min(i, reach) + 1]) for i in range(len(values))
    ]
    np.testing.assert_allclose(charts.smooth(np.array(values), reach), expected, atol=1e-12)


@pytest.mark.parametrize("low", [-0.002, 0.0, 3.0])
def test_distances_of_any_sign_are_drawn(low: float) -> None:
    bracket = {"num_images": 9, "floor": low, "value": low + 0.5, "ceiling": 900.0}
    row = {"label": "d", "sampler": "s", "seed": 0, "bracket": bracket}
    assert charts.distance_chart("t", [row]).startswith(b"\x89PNG")
