"""Charts: the smoothed curve, distances of any sign, and distances over evaluations."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.drawing import charts, curve
from pipeline.reporting import score_rows
from tests.report_inputs import evaluation, of_sampler, parsed


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=60), st.integers(0, 9))
def test_smooth_is_the_mean_of_the_neighbours(values: list[float], reach: int) -> None:
    expected = [
        np.mean(values[max(i - reach, 0) : i + min(i, reach) + 1]) for i in range(len(values))
    ]
    np.testing.assert_allclose(curve.smooth(np.array(values), reach), expected, atol=1e-12)


@pytest.mark.parametrize("low", [-0.002, 0.0, 3.0])
def test_distances_of_any_sign_are_drawn(low: float) -> None:
    result = of_sampler(0, "heun", 9, 4.0)
    result["metrics"][0]["bracket"] |= {"floor": low, "value": low + 0.5, "ceiling": 900.0}
    (row,) = score_rows.frechet_rows(score_rows.table_rows(parsed(result)))
    assert charts.distance_chart("t", [row]).startswith(b"\x89PNG")


def lines_of(rows: list, monkeypatch: pytest.MonkeyPatch) -> tuple[str, dict[str, list]]:
    """Title and the points of each line of `nfe_chart`."""
    figures: list = []
    monkeypatch.setattr(charts, "png", lambda figure: figures.append(figure) or b"")
    charts.nfe_chart("data", rows, ["Protocol: x"])
    (axis,) = figures[0].axes
    points = {line.get_label(): np.transpose(line.get_data()).tolist() for line in axis.lines}
    return figures[0].get_suptitle(), points


def test_means_of_a_family_are_joined_in_the_order_of_their_cost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runs = [("heun", 18, 4.0), ("euler", 16, 9.0), ("heun", 9, 6.0)]
    found = [of_sampler(seed, *run[:2], run[2] + seed) for run in runs for seed in (0, 1)]
    title, points = lines_of(
        score_rows.frechet_rows(score_rows.table_rows(parsed(*found))), monkeypatch
    )
    assert title == "FID <of all>"
    assert points["heun"] == [[18, 6.5], [36, 4.5]] and points["euler"] == [[16, 9.5]]
    floor = points["floor: 9 other real images"]
    assert [y for _, y in floor] == [12.25, 12.25]


def test_names_of_long_samplers_stay_in_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "heun-sigma-g1.7-by-edm2_smoke_guide_8000-ccc3a3-ema0.075"
    (row,) = score_rows.frechet_rows(score_rows.table_rows(parsed(of_sampler(0, "heun", 9, 4.0))))
    figures: list = []
    monkeypatch.setattr(charts, "png", lambda figure: figures.append(figure) or b"")
    charts.nfe_chart("data", [replace(row, family=name + c) for c in "abc"], ["Protocol: x"])
    (figure,) = figures
    figure.draw_without_rendering()
    box = figure.legends[0].get_window_extent()
    assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1


def test_one_sampler_or_none_is_drawn_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = score_rows.frechet_rows(score_rows.table_rows(parsed(evaluation(0))))
    title, points = lines_of(rows, monkeypatch)
    assert "one sampler" in title and points["heun-18"] == [[36, 34.5]]
    assert "no Fréchet distance" in lines_of([], monkeypatch)[0]


@given(st.lists(st.floats(1, 1e4), min_size=1, max_size=30))
def test_ticks_do_not_touch_and_none_is_far(values: list[float]) -> None:
    ticks = charts.apart(values)
    assert all(b > 1.08 * a for a, b in pairwise(ticks))
    assert all(any(t <= value <= 1.08 * t for t in ticks) for value in values)
