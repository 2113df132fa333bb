"""Refine a fitted solver as a whole: see pipeline/sampling/fitting.py, which fits it step by step.

All times and coefficients together descend the mean distance of the last states from where they
should be, by L-BFGS (Liu & Nocedal 1989) on the sums over all images, so that the answer still
needs no seed or rate. Squares would fit it to the few images that lie farthest.

The gradient is that of the unrolled solver, taken by hand from the last step to the first: the
states and slopes are kept, and the network is evaluated again at each, so that memory holds one
evaluation with its gradient, whatever the number of steps.

The slopes of a step nearly agree, so that the problem is ill-conditioned. It is solved along
directions that change the last states independently of each other, which the Gauss-Newton matrix
J'WJ of the start gives, with the inverse distances W; it is estimated by derivatives of random
combinations of an image's values (Hutchinson 1990).
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from pipeline.compute.distributed import Ranks
from pipeline.sampling.field import Field
from pipeline.sampling.fitting import SMALLEST, Fit, Lesson, distance
from pipeline.sampling.ode import all_rows, combine, filled

MOST_ITERATIONS = 20
LEAST_GAIN = 0.02  # of an iteration, of the distance of the start; less moves rare images away
PROBES = 4  # random vectors for each number that is refined
FIRST_MOVE = 0.25  # of the last states, in the distance of the start
CUTOFF = 1e-9  # relative; along these directions slopes differ by hardly more than rounding
LOGARITHM = 0.5  # of a step's length, the most that is a unit
SHORTEST = 1e-4  # step
REFUSED = 10.0  # relative distance of a solver that is none

Value = Callable[[np.ndarray], tuple[float, np.ndarray]]


def refine(start: Fit, lessons: list[Lesson], group: Ranks) -> tuple[Fit, int]:
    """The solver that descends from `start`, never a worse one, and the number of iterations.

    The same on every rank, as if one had all the images.
    """
    images = group.sum(torch.tensor(sum(len(lesson.exact.states[0]) for lesson in lessons)))
    coordinates = Coordinates(start)
    probes = math.ceil(PROBES * coordinates.size / int(images))
    far, curvature = (group.sum(part) for part in measure(start, lessons, probes))
    coordinates.turn(curvature.numpy() / probes, FIRST_MOVE * math.sqrt(far))

    def value(numbers: np.ndarray) -> tuple[float, np.ndarray]:
        times, rows = coordinates.solver(numbers)
        if min(np.diff(times)) < SHORTEST:
            return REFUSED, np.zeros_like(numbers)
        sums = torch.zeros(1 + coordinates.size, dtype=torch.float64)
        for lesson in lessons:
            sums += gradient(times, rows, lesson)
        found = group.sum(sums) / far
        if not found.isfinite().all():  # too long a step: a shorter one is tried
            return REFUSED, np.zeros_like(numbers)
        return float(found[0]), coordinates.derivative(numbers, found[1:].numpy())

    numbers, iterations = descend(value, coordinates.size, group)
    times, rows = coordinates.solver(numbers)
    ends = [course(times, rows, field, exact.states[0])[0][-1] for field, exact in lessons]
    return Fit(times, rows, distance(ends, lessons, group)), iterations


# --- the distance and its gradient ---------------------------------------------------------------


def course(
    times: list[float], rows: list[list[float]], field: Field, noise: Tensor
) -> tuple[list[Tensor], list[Tensor]]:
    """The n+1 states (B,C,H,W) of a batch on its way by a solver, and what its steps combine.

    The states begin with `noise`; what is combined is the noise, and the n slopes.
    """
    states, known = [noise], [noise]
    for t, row in zip(times[:-1], rows, strict=True):
        known.append(field(states[-1], filled(noise, t), all_rows(noise)))
        states.append(combine(row, known))
    return states, known


def pull_back(
    times: list[float],
    rows: list[list[float]],
    field: Field,
    way: tuple[list[Tensor], list[Tensor]],
    by_state: Tensor,
) -> Tensor:
    """Derivatives for each image by the solver, from those by the last state (B,C,H,W).

    (B, (n-1) + S) float64: by the n-1 times between 0 and 1, and by the S coefficients, row by row.
    `way`: see `course`.
    """
    states, known = way
    by_slopes = [torch.zeros_like(by_state) for _ in rows]
    by_times, by_rows = [], []

    # From the last step to the first, whose state is given
    for k in reversed(range(len(rows))):
        vectors = torch.stack(known[: k + 2], 1).flatten(2).double()
        by_rows.append((vectors @ by_state.flatten(1).double()[:, :, None])[:, :, 0])
        for j, number in enumerate(rows[k][1:]):
            by_slopes[j] = by_slopes[j] + number * by_state
        if k > 0:
            by_state, by_time = through_network(field, states[k], times[k], by_slopes[k])
            by_times.append(by_time.double()[:, None])
    return torch.cat([*by_times[::-1], *by_rows[::-1]], 1)


def through_network(field: Field, x: Tensor, t: float, by_slopes: Tensor) -> tuple[Tensor, Tensor]:
    """Derivatives by the states x (B,C,H,W), and by their times t (B,), from those by slopes."""
    with torch.enable_grad():
        inputs = x.detach().requires_grad_(), filled(x, t).requires_grad_()
        slopes = field(*inputs, all_rows(x))
        by_states, by_times = torch.autograd.grad(
            slopes, inputs, by_slopes, allow_unused=True, materialize_grads=True
        )
    return by_states, by_times


def gradient(times: list[float], rows: list[list[float]], lesson: Lesson) -> Tensor:
    """The summed distance of a batch's last states, and its derivatives: see `pull_back`.

    (1 + (n-1) + S,) float64, on the CPU.
    """
    way = course(times, rows, lesson.field, lesson.exact.states[0])
    error = way[0][-1] - lesson.exact.states[-1]
    far = distances(error)
    derivatives = pull_back(times, rows, lesson.field, way, error / far.to(error.dtype)).sum(0)
    return torch.cat([far.double().sum()[None], derivatives]).cpu()


def distances(error: Tensor) -> Tensor:
    """Root of the summed squares of each image's error (B,C,H,W), (B,1,1,1) float64, not 0."""
    squares = error.double().square().sum((1, 2, 3), keepdim=True)
    return squares.sqrt().clamp(min=SMALLEST)


def measure(start: Fit, lessons: list[Lesson], probes: int) -> tuple[Tensor, Tensor]:
    """The distance () of a solver's last states, and their J'WJ, summed over this rank's images.

    Both float64, on the CPU. J'WJ is estimated, `probes` times in sum, in the order of `pull_back`.
    An image's random vectors are its noise, rolled: so they need no seed.
    """
    size = Coordinates(start).size
    total, curvature = (torch.zeros(shape, dtype=torch.float64) for shape in ((), (size, size)))
    for field, exact in lessons:
        noise, solver = exact.states[0], start[:2]
        way = course(*solver, field, noise)
        far = distances(way[0][-1] - exact.states[-1])
        total += far.sum().cpu()
        for probe in range(1, probes + 1):
            values = noise[0].numel()
            rolled = noise.flatten(1).roll(values * probe // (probes + 1), 1).view_as(noise)
            found = pull_back(*solver, field, way, rolled)
            curvature += (found.T @ (found / far.flatten(1))).cpu()
    return total, curvature


# --- the descent ---------------------------------------------------------------------------------


class Coordinates:
    """Numbers (P,), 0 at the start, that stand for the times and coefficients of a solver.

    They are combinations of the logarithms of the lengths of n-1 steps, in lengths of the last one,
    and of the coefficients.
    """

    def __init__(self, start: Fit) -> None:
        """Numbers that stand for one logarithm or one coefficient each, until `turn`."""
        self.lengths, self.rows = np.diff(start.times), start.coefficients
        self.inner, widths = len(self.rows) - 1, [len(row) for row in self.rows]
        self.ends = (self.inner + np.cumsum([0, *widths]))[:-1]  # of the parts: logarithms, rows
        self.size = self.inner + sum(widths)
        self.basis = np.eye(self.size)

    def turn(self, curvature: np.ndarray, distance: float) -> None:
        """Take combinations of which a unit moves all last states together by the distance.

        `curvature`: J'WJ, see `measure`.
        """
        change = np.eye(self.size)
        change[: self.inner, : self.inner] = self.by_logarithms(self.lengths)
        products = change.T @ curvature @ change
        products.ravel()[: self.inner * self.size : self.size + 1] += (distance / LOGARITHM) ** 2
        self.basis = distance * whitening(products)

    def by_logarithms(self, lengths: np.ndarray) -> np.ndarray:
        """Derivatives (n-1, n-1) of the inner times by the logarithms, at lengths (n,)."""
        derivatives: np.ndarray = np.tri(self.inner) - np.cumsum(lengths)[:-1, None]
        return derivatives * lengths[:-1]

    def parts(self, numbers: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        """Lengths (n,) of the steps, and by how much the rows of coefficients are moved."""
        logarithms, *moves = np.split(self.basis @ numbers, self.ends)
        logarithms = np.append(logarithms, 0)
        lengths = self.lengths * np.exp(logarithms - logarithms.max())
        return lengths / lengths.sum(), moves

    def solver(self, numbers: np.ndarray) -> tuple[list[float], list[list[float]]]:
        """The times and the coefficients."""
        lengths, moves = self.parts(numbers)
        rows = [(np.array(row) + move).tolist() for row, move in zip(self.rows, moves, strict=True)]
        return [0.0, *np.cumsum(lengths)[:-1].tolist(), 1.0], rows

    def derivative(self, numbers: np.ndarray, found: np.ndarray) -> np.ndarray:
        """By the numbers (P,), from those by the times and coefficients: see `pull_back`."""
        by_times, by_rows = np.split(found, [self.inner])
        by_logarithms = by_times @ self.by_logarithms(self.parts(numbers)[0])
        result: np.ndarray = np.concatenate([by_logarithms, by_rows]) @ self.basis
        return result


def whitening(products: np.ndarray) -> np.ndarray:
    """Combinations (n, n) of n vectors that have length 1 and are orthogonal to each other.

    `products` (n, n): inner products of the vectors. Directions in which they hardly differ, once
    scaled to length 1, come out shorter.
    """
    scale = 1 / np.sqrt(np.maximum(products.diagonal(), SMALLEST))
    values, vectors = np.linalg.eigh(scale[:, None] * products * scale)
    combinations: np.ndarray = scale[:, None] * vectors
    return combinations / np.sqrt(np.maximum(values, CUTOFF * values[-1]))


def descend(value: Value, size: int, group: Ranks) -> tuple[np.ndarray, int]:
    """The lowest place found from 0 on, and the number of iterations.

    `value` gives the distance relative to the start's and its derivatives, and is called with the
    same numbers on every rank: rank 0 leads, so that no rounding parts them.
    """
    from scipy.optimize import OptimizeResult, minimize  # half a second, which sampling saves

    def tell(is_last: bool, *numbers: float) -> np.ndarray:
        message = torch.tensor([is_last, *numbers], dtype=torch.float64)
        told: np.ndarray = group.sum(message).numpy()
        return told

    # The other ranks follow
    if not group.first:
        while not (told := tell(False, *np.zeros(size + 1)))[0]:
            value(told[2:])
        return told[2:], int(told[1])

    # Rank 0 searches
    def led(numbers: np.ndarray) -> tuple[float, np.ndarray]:
        tell(False, 0, *numbers)
        return value(numbers)

    count = iter(range(1, MOST_ITERATIONS + 1))

    def report(intermediate_result: OptimizeResult) -> None:
        ratio = f"{intermediate_result.fun:.4g} x the distance"
        print(f"solver: iteration {next(count)} of at most {MOST_ITERATIONS}, {ratio}", flush=True)

    options = {"maxiter": MOST_ITERATIONS, "ftol": LEAST_GAIN}
    end = minimize(
        led, np.zeros(size), jac=True, method="L-BFGS-B", callback=report, options=options
    )
    tell(True, end.nit, *end.x)
    return end.x, int(end.nit)
