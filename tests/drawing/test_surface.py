"""The picture of a search: a map of a grid, curves of everything else, the chosen try marked."""

import io

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from pipeline.drawing.surface import draw_curves, draw_map, in_words, surface_chart
from pipeline.reporting.trials import Try


def attempt(width: float | None, guidance: float, distance: float, *interval: float) -> Try:
    return Try(
        ema_width=width,
        guidance=guidance,
        interval=list(interval or (0, 1)),
        distance=distance,
        evaluations=1,
    )


GRID = [attempt(w, g, 100 * w + g) for w in (0.05, 0.1) for g in (1, 1.5, 2)]
LINES = [attempt(w, 1.5, w) for w in (0.03, 0.05, 0.09)] + [attempt(0.03, g, g) for g in (1, 2)]
INTERVALS = [attempt(None, 2, d, low, 1) for d, low in ((3, 0), (2, 0.25), (4, 0.5))]


def test_a_map_has_each_distance_at_its_place_and_one_mark() -> None:
    axis = Figure().subplots()
    draw_map(axis, GRID, GRID, GRID[1])
    texts = {t.get_position(): t.get_text() for t in axis.texts}
    assert texts == {
        (0, 0): "6", (1, 0): "6.5", (2, 0): "7", (0, 1): "11", (1, 1): "11.5", (2, 1): "12",
    }  # fmt: skip
    ((x,), (y,)) = axis.lines[0].get_data()
    assert (x, y) == (1, 0) and len(axis.lines) == 1
    assert [t.get_text() for t in axis.get_yticklabels()] == ["0.05", "0.1"]


def test_a_curve_joins_tries_that_differ_in_its_key_alone() -> None:
    axis = Figure().subplots()
    draw_curves(axis, "ema_width", LINES, LINES[0])
    curve, mark = axis.lines
    assert np.array_equal(curve.get_xdata(), [0.03, 0.05, 0.09])
    assert curve.get_label() == "guidance weight 1.5"
    assert list(mark.get_xdata()) == [0.03] and mark.get_label() == "chosen"


@pytest.mark.parametrize(
    ("tries", "panels"), [(GRID, 1), (LINES, 2), (INTERVALS, 1), (GRID[:1], 1)]
)
def test_every_search_has_a_picture(tries: list[Try], panels: int) -> None:
    picture = Image.open(io.BytesIO(surface_chart("sampler", "distance", tries, tries[0])))
    assert picture.width > 700 * panels and np.asarray(picture).std() > 5


def test_a_choice_in_words() -> None:
    assert in_words(attempt(0.05, 1.5, 1)) == "EMA width 0.05, guidance 1.5"
    assert in_words(attempt(None, 2, 1, 0.25, 1)) == "guidance 2 from 0.25 to 1"
