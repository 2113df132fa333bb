"""Searches for the choice of the least distance: a grid, or golden sections of one axis at a time.

A search sees a function of a choice alone, which it may ask for the same choice twice.
"""

import math
from collections.abc import Callable
from itertools import product
from typing import NamedTuple

from pipeline.config.schema import Sample
from pipeline.config.select_keys import Select

SHRINK = (math.sqrt(5) - 1) / 2  # of the bracket, by each try after the first two
DIGITS = 4  # of a value between two ends

Distance = Callable[["Candidate"], float]


class Candidate(NamedTuple):
    """Values of all keys of `sample` that a search may choose."""

    ema_width: float | None
    guidance: float
    interval: tuple[float, float]


def search(select: Select, sample: Sample, distance: Distance) -> Candidate:
    """The candidate of the least distance that `select` finds; keys not searched are `sample`'s."""
    start = Candidate(sample.ema_width, sample.guidance, sample.guidance_interval)
    return (grid if select.search == "grid" else golden)(select, start, distance)


def grid(select: Select, start: Candidate, distance: Distance) -> Candidate:
    """The best of all combinations, in the order of the lists, the widths changing last."""
    widths = select.ema_widths or (start.ema_width,)
    weights = select.guidance or (start.guidance,)
    intervals = select.intervals or (start.interval,)
    return min((Candidate(*c) for c in product(widths, weights, intervals)), key=distance)


def golden(select: Select, start: Candidate, distance: Distance) -> Candidate:
    """The width at the middle of the guidance weights, then the weight, then the interval.

    Widths are searched by their logarithm. An equal share of max_tries goes to either axis.
    """
    # Tries of an axis
    best, intervals = start, select.intervals or ()
    tries = (select.max_tries - len(intervals)) // max(1, select.num_axes)
    if select.guidance:
        best = best._replace(guidance=sum(select.guidance) / 2)

    # Axis after axis
    if select.ema_widths:
        low, high = map(math.log, select.ema_widths)
        at_width = best
        section = golden_section(
            low, high, tries, lambda x: distance(at_width._replace(ema_width=rounded(math.exp(x))))
        )
        best = best._replace(ema_width=rounded(math.exp(section)))
    if select.guidance:
        at_weight = best
        section = golden_section(
            min(select.guidance),
            max(select.guidance),
            tries,
            lambda x: distance(at_weight._replace(guidance=rounded(x))),
        )
        best = best._replace(guidance=rounded(section))
    return min((best._replace(interval=i) for i in intervals or (best.interval,)), key=distance)


def golden_section(low: float, high: float, tries: int, score: Callable[[float], float]) -> float:
    """The point between two ends with the least of `tries` (two or more) scores.

    Of a function with one minimum between the ends, it is within SHRINK**(tries - 1) of their
    distance of it.
    """
    # Two points within
    left, right = high - SHRINK * (high - low), low + SHRINK * (high - low)
    scores = {left: score(left), right: score(right)}

    # The part of three points that holds the least
    for _ in range(tries - 2):
        if scores[left] <= scores[right]:
            high, right = right, left
            left = point = high - SHRINK * (high - low)
        else:
            low, left = left, right
            right = point = low + SHRINK * (high - low)
        scores[point] = score(point)
    return min(scores, key=lambda point: scores[point])


def rounded(value: float) -> float:
    """A value to a few digits, as a person would write it into a key."""
    return float(f"{value:.{DIGITS}g}")
