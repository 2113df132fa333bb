"""The solver of Dormand & Prince, whose steps adapt to each sample."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.sampling.ode import Solution, Velocity, all_rows, combine

# Control of the step
SAFETY = 0.9  # of the step controller
MIN_FACTOR, MAX_FACTOR = 0.2, 10.0  # by which a step may change
MIN_STEP = 1e-12  # units of time; a shorter step has underflowed

# Dormand & Prince 1980, RK5(4)7M: nodes, stage weights, and the difference of the weights of order
# 5 and 4. The last row of stage weights is the solution of order 5.
NODES = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
STAGES: tuple[tuple[float, ...], ...] = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)


def dopri5(
    velocity: Velocity,
    x: Tensor,
    rtol: float,
    atol: float,
    rows: Tensor | None = None,
    *,
    start: float = 0.0,
    stop: float = 1.0,
) -> Solution:
    """Dormand-Prince 5(4) (J. Comp. Appl. Math. 6, 1980), steps chosen per sample.

    Goes from time `start` to the later time `stop`.
    A step is accepted if the RMS over the sample's elements of
    error / (atol + rtol max(|x|, |x_new|)) is at most 1. Two evaluations choose the first step and
    each attempt takes six; a step does not grow right after a rejection (Hairer, Norsett & Wanner
    1993, II.4). A finished sample is not evaluated again. Each sample is independent of the others.
    `rows` (B,) int64, on x's device, are the numbers handed to the velocity, by default 0 to B-1.
    Raises ArithmeticError, naming the rows, if a step underflows.
    """
    # The first step
    rows = all_rows(x) if rows is None else rows
    final, evaluations = torch.empty_like(x), torch.full_like(rows, 2)
    t = torch.full((len(x),), start, dtype=torch.float64, device=x.device)
    slope = velocity(x, t.to(x.dtype), rows)
    step = _first_step(velocity, x, slope, rows, (rtol, atol), (start, stop))
    place = all_rows(x)  # of the live samples in the batch
    smooth = torch.ones_like(place, dtype=torch.bool)  # their last attempt was not rejected
    while len(place):
        # One attempt
        _check_step(step, rows[place])
        last = step >= stop - t
        h = torch.minimum(step, stop - t)
        new_x, new_slope, error = dopri5_step(velocity, x, t, h, slope, rows[place])
        evaluations[place] += len(STAGES)

        # Samples whose error is small enough move on
        norm = _rms(error / (atol + rtol * torch.maximum(x.abs(), new_x.abs())))
        accepted = norm <= 1
        x = torch.where(_wide(accepted, x), new_x, x)
        slope = torch.where(_wide(accepted, x), new_slope, slope)
        t = torch.where(accepted, torch.where(last, stop, t + h), t)

        # The next step
        factor = t.new_tensor([step_factor(value) for value in norm.tolist()])
        step = h * torch.where(smooth, factor, factor.clamp(max=1))

        # Samples at the end leave the batch
        live = t < stop
        final[place[~live]] = x[~live]
        x, slope, t, step = x[live], slope[live], t[live], step[live]
        place, smooth = place[live], accepted[live]
    return Solution(final, evaluations)


# --- parts ------------------------------------------------------------------------------------


def dopri5_step(
    velocity: Velocity, x: Tensor, t: Tensor, h: Tensor, slope: Tensor, rows: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """One Dormand-Prince step of length h (B,) float64 from the times t (B,) float64.

    `slope` is the velocity at (x, t): the last stage of one step is the first of the next. Returns
    the new x (order 5), the velocity there, and the difference to the solution of order 4.
    """
    slopes = [slope]
    wide_h = _wide(h.to(x.dtype), x)
    state = x
    for node, weights in zip(NODES, STAGES, strict=True):
        state = x + wide_h * combine(weights, slopes)
        slopes.append(velocity(state, (t + node * h).to(x.dtype), rows))
    return state, slopes[-1], wide_h * combine(ERROR, slopes)


def step_factor(error: float) -> float:
    """Factor on the step after an error norm, in [0.2, 10]: 0.9 error^(-1/5).

    Hairer, Norsett & Wanner 1993, eq. II.4.13. An error that is not finite gives 0.2.
    """
    if not math.isfinite(error):
        return MIN_FACTOR
    return min(MAX_FACTOR, max(MIN_FACTOR, SAFETY * math.pow(max(error, 1e-10), -0.2)))


def _first_step(
    velocity: Velocity,
    x: Tensor,
    slope: Tensor,
    rows: Tensor,
    tolerances: tuple[float, float],
    interval: tuple[float, float],
) -> Tensor:
    """First step of each sample (B,) float64; Hairer, Norsett & Wanner 1993, II.4, one evaluation.

    `tolerances` are rtol and atol, `interval` the first and last time. The trial step stays within
    the interval, since a velocity need not exist beyond it.
    """
    # Scale of the errors
    (rtol, atol), (start, stop) = tolerances, interval
    scale = atol + rtol * x.abs()
    size, speed = _rms(x / scale).tolist(), _rms(slope / scale).tolist()
    # A trial step
    trials = [min(stop - start, _trial_step(*norms)) for norms in zip(size, speed, strict=True)]
    trial = torch.tensor(trials, dtype=torch.float64, device=x.device)
    # Curvature along it
    end = x + _wide(trial.to(x.dtype), x) * slope
    change = _rms((velocity(end, (start + trial).to(x.dtype), rows) - slope) / scale).tolist()
    steps = [_grown_step(*norms) for norms in zip(trials, speed, change, strict=True)]
    return torch.tensor(steps, dtype=torch.float64, device=x.device)


def _trial_step(size: float, speed: float) -> float:
    """A step that changes a state of norm `size` by a hundredth; steps a) and b) of II.4."""
    return 1e-6 if size < 1e-5 or speed < 1e-5 else 0.01 * size / speed


def _grown_step(trial: float, speed: float, change: float) -> float:
    """A step h with h^5 max(|f|, |f'|) = 0.01, at most 100 trial steps; steps d) to f) of II.4.

    A velocity whose norm overflows gives 0.
    """
    if trial == 0:
        return 0.0
    largest = max(speed, change / trial)
    return trial if largest <= 1e-15 else min(100 * trial, math.pow(0.01 / largest, 0.2))


def _check_step(step: Tensor, rows: Tensor) -> None:
    """Raise ArithmeticError, naming the first rows, if a step is too short or NaN."""
    bad = rows[~(step >= MIN_STEP)].tolist()
    if bad:
        raise ArithmeticError(
            f"the step size of dopri5 underflowed in rows {bad[:5]}: the velocity there is not "
            "finite, or too rough for these tolerances; raise rtol and atol or take a fixed grid"
        )


def _rms(values: Tensor) -> Tensor:
    """Root mean square of each row, (B,), the same to the last bit whatever the batch.

    The sum is a tree of elementwise additions, because the order in which a library's reduction
    adds depends on the number of rows. For the same reason powers are taken one row at a time in
    Python: a vectorised power may round differently at the end of an array.
    """
    total = values.flatten(1).square()
    count = total.shape[1]
    while total.shape[1] > 1:
        total = F.pad(total, (0, total.shape[1] % 2))
        evens, right = total.chunk(2, dim=1)
        total = evens + right
    return (total[:, 0] / count).sqrt()


def _wide(values: Tensor, x: Tensor) -> Tensor:
    """(B,) as (B, 1, 1, 1), to go with x."""
    return values.view(-1, *[1] * (x.dim() - 1))
