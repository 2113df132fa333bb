"""Fit a solver of few steps to the exact solutions of a network's ODE: see pipeline/solver.py.

The solver is that of Shaul et al. 2024 (see reporting/learned.py). They descend the gradient of its
error from a classical solver on. Here each step is first a linear least squares problem: the
network is evaluated at the states of the solver itself, and the numbers of a step are those that
bring its images nearest to where dopri5 has them at that time. The sums over all pixels are a
matrix of the size of the step, so nothing is differentiated, any number of ranks can share the
images, and the answer needs no seed or rate of its own. Only the times are searched, on a curve of
two parameters. From there the whole solver is refined: see refining.py.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.base.errors import UserError
from pipeline.compute.distributed import Ranks
from pipeline.sampling.field import Field
from pipeline.sampling.ode import all_rows, combine, filled

SECTIONS = 16  # equal ones, at whose ends a trajectory is kept
START, STEPS = (0.4, 0.4), (0.4, 0.2, 0.1)  # logarithms of a and b: where to begin, how far to go
NEIGHBOURS = ((-1, 0), (1, 0), (0, -1), (0, 1))
MOST_TRIES = 24
CUTOFF = 1e-12  # relative; directions in which the slopes differ by rounding alone
SMALLEST = 1e-30  # of what is divided by


@dataclass(frozen=True)
class Trajectory:
    """Exact solutions of a batch from its noise on, at SECTIONS + 1 equally spaced times."""

    states: list[Tensor]  # (B,C,H,W) each, the noise first
    slopes: list[Tensor]  # likewise
    evaluations: int  # of networks

    def at(self, t: float) -> Tensor:
        """The states at time t in [0,1], by cubic Hermite interpolation; exact at the ends."""
        index = min(SECTIONS - 1, int(t * SECTIONS))
        s, h = t * SECTIONS - index, 1 / SECTIONS
        rise = s * s * (3 - 2 * s)
        weights = [1 - rise, h * s * (1 - s) ** 2, rise, -h * s * s * (1 - s)]
        (x, x_next), (v, v_next) = (kept[index : index + 2] for kept in (self.states, self.slopes))
        return combine(weights, [x, v, x_next, v_next])


def trajectory(field: Field, x: Tensor) -> Trajectory:
    """The solutions that start from x (B,C,H,W), by the field's own adaptive solver."""
    times = torch.linspace(0, 1, SECTIONS + 1, dtype=torch.float64)
    states, slopes = [x], []
    for section in times.unfold(0, 2, 1):
        slopes.append(field(x, filled(x, float(section[0])), all_rows(x)))
        x = field.solve(x, section)
        states.append(x)
    slopes.append(field(x, filled(x, 1.0), all_rows(x)))
    return Trajectory(states, slopes, int(field.evaluations.sum()))


class Lesson(NamedTuple):
    """A batch of images, and where they must come to."""

    field: Field  # that the solver will follow
    exact: Trajectory


class Fit(NamedTuple):
    """A solver, and what it reaches on the images that it is fitted to."""

    times: list[float]  # (n+1), from 0 to 1
    coefficients: list[list[float]]
    rmse: float  # root mean square distance of all values from the exact ones


def fit(times: list[float], lessons: list[Lesson], group: Ranks) -> Fit:
    """Coefficients for steps between `times` (n+1), from 0 to 1, by the images of all ranks.

    The same on every rank. Raises UserError there if a velocity is not finite.
    """
    rows: list[list[float]] = []
    known = [[lesson.exact.states[0]] for lesson in lessons]  # the noise, then the slopes
    states = [batch[0] for batch in known]
    for t, t_next in pairwise(times):
        products = torch.zeros(len(rows) + 2, len(rows) + 3, dtype=torch.float64)
        for (field, exact), batch, x in zip(lessons, known, states, strict=True):
            batch.append(field(x, filled(x, t), all_rows(x)))
            products += inner_products(batch, exact.at(t_next)).cpu()
        rows.append(least_squares(group.sum(products).numpy()))
        states = [combine(rows[-1], batch) for batch in known]
    return Fit(times, rows, distance(states, lessons, group))


def inner_products(known: list[Tensor], target: Tensor) -> Tensor:
    """Inner products (n, n+1) in float64 of n tensors with each other and with the target."""
    vectors = torch.stack([*known, target]).flatten(1).double()
    return vectors[:-1] @ vectors.T


def least_squares(products: np.ndarray) -> list[float]:
    """The n numbers whose combination of the vectors is nearest to the target.

    `products` (n, n+1): see `inner_products`. Vectors are scaled to length 1 first, and directions
    in which they do not differ get no weight. Raises UserError if they are not finite.
    """
    if not np.isfinite(products).all():
        raise UserError(
            "a velocity of the network is not finite: take weights from before the training "
            "failed, or another sample.precision"
        )
    scale = 1 / np.sqrt(np.maximum(products[:, :-1].diagonal(), SMALLEST))
    matrix = scale[:, None] * products[:, :-1] * scale
    solution = np.linalg.lstsq(matrix, scale * products[:, -1], rcond=CUTOFF)[0]
    numbers: list[float] = (scale * solution).tolist()
    return numbers


def distance(states: list[Tensor], lessons: list[Lesson], group: Ranks) -> float:
    """Root mean square distance of the states of all ranks from where they should have come to."""
    sums = torch.zeros(2, dtype=torch.float64)
    for x, (_, exact) in zip(states, lessons, strict=True):
        error = (x - exact.states[-1]).double().square()
        sums += torch.tensor([error.sum(), error.numel()], dtype=torch.float64)
    squares, num = group.sum(sums).tolist()
    return math.sqrt(squares / num)


def curved(num_steps: int, a: float, b: float) -> list[float]:
    """Times (num_steps+1) from 0 to 1: t(u) = 1 - (1 - u^a)^b, Kumaraswamy's distribution (1980).

    a > 1 makes the steps near the noise shorter, b > 1 those near the image.
    """
    u = np.linspace(0, 1, num_steps + 1)
    times: list[float] = (1 - (1 - u**a) ** b).tolist()
    return times


def pattern_search(error: Callable[[float, float], float]) -> dict[tuple[float, float], float]:
    """The errors of all pairs (a, b) that were tried, at most MOST_TRIES.

    From START on it goes to the best of four neighbours as long as one is better, in ever shorter
    steps along the logarithms (Hooke & Jeeves 1961, without their longer moves).
    """
    tried: dict[tuple[float, float], float] = {}

    def value(place: tuple[float, float]) -> float:
        key = (math.exp(place[0]), math.exp(place[1]))
        if key not in tried:
            if len(tried) == MOST_TRIES:
                return math.inf
            tried[key] = error(*key)
        return tried[key]

    best = START
    value(best)
    for step in STEPS:
        while True:
            around = [(best[0] + i * step, best[1] + j * step) for i, j in NEIGHBOURS]
            nearest = min(around, key=value)
            if value(nearest) >= value(best):
                break
            best = nearest
    return tried
