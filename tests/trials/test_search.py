"""Searches against functions whose minimum is known."""

import math

import pytest

from pipeline.config.select_keys import Select
from pipeline.trials.search import SHRINK, Candidate, golden_section, search
from tests.conftest import resolved

SAMPLE = resolved("experiment=tiny", "sample.guidance=1.5").sample


class Bowl:
    """A distance that is least at one candidate; remembers what it was asked."""

    def __init__(self, width: float, guidance: float) -> None:
        self.width, self.guidance, self.asked = width, guidance, []

    def __call__(self, candidate: Candidate) -> float:
        self.asked.append(candidate)
        width = 0 if candidate.ema_width is None else math.log(candidate.ema_width / self.width)
        far = 0.5 * (candidate.interval != (0.2, 0.8))
        return width**2 + (candidate.guidance - self.guidance) ** 2 + far


@pytest.mark.parametrize("minimum", [0.0, 0.3, 1.7, 4.0])
@pytest.mark.parametrize("tries", [3, 9, 16])
def test_golden_section_is_as_near_as_it_says(minimum: float, tries: int) -> None:
    asked = []

    def score(x: float) -> float:
        asked.append(x)
        return abs(x - minimum)

    best = golden_section(0, 4, tries, score)
    assert len(asked) == tries == len(set(asked))
    assert abs(best - minimum) <= 4 * SHRINK ** (tries - 1) + 1e-12


def test_axis_after_axis() -> None:
    keys = {"ema_widths": (0.02, 0.2), "guidance": (1, 3), "intervals": ((0, 1), (0.2, 0.8))}
    bowl = Bowl(0.07, 1.4)
    best = search(Select(max_tries=26, **keys), SAMPLE, bowl)
    assert best.ema_width == pytest.approx(0.07, rel=0.02)
    assert best.guidance == pytest.approx(1.4, abs=0.02)
    assert best.interval == (0.2, 0.8)
    assert len(bowl.asked) == 26
    assert {c.guidance for c in bowl.asked[:12]} == {2.0}  # the middle
    assert len({c.ema_width for c in bowl.asked[12:]}) == 1


def test_what_is_not_searched_stays() -> None:
    best = search(Select(guidance=(1, 3), max_tries=15), SAMPLE, Bowl(1, 2.5))
    assert best.ema_width is None and best.interval == (0, 1)
    assert best.guidance == pytest.approx(2.5, abs=0.01)


def test_a_grid_is_walked_with_the_widths_changing_last() -> None:
    bowl = Bowl(0.05, 2)
    select = Select(search="grid", ema_widths=(0.1, 0.05), guidance=(1, 2, 4))
    assert search(select, SAMPLE, bowl) == Candidate(0.05, 2, (0, 1))
    expected = [(w, g) for w in (0.1, 0.05) for g in (1, 2, 4)]
    assert [(c.ema_width, c.guidance) for c in bowl.asked] == expected
