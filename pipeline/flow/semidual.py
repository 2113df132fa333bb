"""The duals of semidiscrete optimal transport from standard normal noise to images.

They are the minimum of the convex F(h) = E_x max_j (<x, y_j> + h_j) - sum_j w_j h_j, where w_j is
the share of image j (minus F is the semidual of Genevay et al. 2016, 1605.08527). Its derivative by
h_j is the share of the noise that image j gets, less w_j. Stages of stochastic gradient steps, each
with twice the noises of the one before, end at the mean of their second half (Polyak and Juditsky
1992); then other noises tell how far the shares are from w. The last stage is the first that is
within the tolerance. A mirrored image has the dual of the image: the noise is as likely mirrored,
so of two solutions the mean is one, too.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.compute import draws
from pipeline.compute.distributed import Ranks
from pipeline.flow.atoms import LEVEL, Atoms, in_units, views

ROUNDS = 32  # gradient steps of a stage
FIRST_DRAWS = 256  # of the first step, at least
STEP = 0.5  # of the first stage, in units of the deviation that a step should remove
PIECE = {"cuda": 2**24}  # values of the noises, or of their products, that are there at once …
SMALL_PIECE = 2**21  # … on other devices
SEED = 0  # of the noises: duals are shared by trainings with any seed

Say = Callable[[str], None]


@dataclass(frozen=True)
class Fit:
    """Duals (N,) float64 on the CPU, and what is known of the shares that they give."""

    duals: Tensor
    deviation: float  # RMS of share / w - 1; 0 if noise explains all of it
    draws: int  # that fitted them


class Problem:
    """Atoms with their shares `weights` (N,), float64 on the CPU, and the noise that they get."""

    def __init__(
        self, atoms: Atoms, weights: Tensor, shape: tuple[int, ...], flip: bool, group: Ranks
    ) -> None:
        """`shape` (H,W,C) of an image. The ranks of `group` share the noises out."""
        self.atoms, self.weights, self.shape = atoms, weights, shape
        self.flip, self.group = flip, group

    def counts(self, duals: Tensor, stream: int, first: int, num: int) -> Tensor:
        """Noises `first` … `first + num - 1` of a stream that each atom gets: (N,) float64."""
        # This rank's noises
        rank, world, device = self.group.rank, self.group.world, self.group.device
        own = range(first + num * rank // world, first + num * (rank + 1) // world)
        counts = torch.zeros(len(self.weights), dtype=torch.int64, device=device)
        units = in_units(duals).to(device)
        # Piece by piece
        width = max(math.prod(self.shape), min(len(self.weights), self.atoms.size))
        size = max(1, PIECE.get(device.type, SMALL_PIECE) // width)
        for start in range(own.start, own.stop, size):
            index = torch.arange(start, min(start + size, own.stop), device=device)
            noise = draws.normal(SEED, stream, index, self.shape)
            place, _ = self.atoms.best(views(noise, self.flip), units)
            counts += torch.bincount(place, minlength=len(counts))
        return self.group.sum(counts).cpu().double()

    def spread(self) -> Tensor:
        """Distance (N,) of each atom from the mean of all."""
        # The mean of images, and of mirrored ones
        total = torch.stack([levels.sum(0) for _, levels in self.atoms.chunks()]).sum(0)
        mean = (total / len(self.weights)).view(self.shape)
        mean = (mean + mean.flip(1)) / 2 if self.flip else mean
        # From it
        parts = [
            (levels - mean.flatten()).square().sum(1).sqrt() for _, levels in self.atoms.chunks()
        ]
        return torch.cat(parts).cpu() / LEVEL

    def deviation2(self, duals: Tensor, first: int, num: int) -> float:
        """Mean square of share / w - 1, without bias, by noises from `first` on that fit nothing.

        Pearson's chi-square of the counts, over its expectation if the shares are w, is
        1 + num (share / w - 1)² / N in the mean.
        """
        expected = self.weights * num
        counts = self.counts(duals, draws.DUALS_CHECK, first, num)
        statistic = ((counts - expected).square() / expected).sum() / (len(expected) - 1)
        return (float(statistic) - 1) * (len(expected) - 1) / num


def num_checked(num_atoms: int, tolerance: float) -> int:
    """Noises that tell a mean square deviation from 0 to half of tolerance², as one deviation."""
    return math.ceil(num_atoms * max(1.0, 2 * math.sqrt(2 / num_atoms) / tolerance**2))


def fit(problem: Problem, tolerance: float, max_draws: int, say: Say) -> Fit:
    """Duals with which the shares deviate by `tolerance` (RMS) at most.

    If `max_draws` noises per atom do not suffice, they are the best of those that were found.
    `say` gets a line after each stage.
    """
    # One image gets all noise
    num = len(problem.weights)
    if num == 1:
        return Fit(torch.zeros(1, dtype=torch.float64), 0.0, 0)

    # A first guess: the largest of so many independent normals
    spread, extreme = problem.spread(), math.sqrt(2 * math.log(num))
    unit, best, least = float(spread.mean()) / extreme, -extreme * spread, math.inf
    checked = min(num_checked(num, tolerance), max_draws * num)
    drawn, a_step, step, stage = 0, max(FIRST_DRAWS, num), STEP, 0
    while least > tolerance**2 and (stage == 0 or drawn + ROUNDS * a_step <= max_draws * num):
        duals = descend(problem, best, step * unit, drawn, a_step)
        drawn, a_step = drawn + ROUNDS * a_step, 2 * a_step
        measured = problem.deviation2(duals, stage * checked, checked)
        # Half of it remains if noise is all that is left, more if the steps are too long
        step = step / 2 if measured > least / 2 else step
        if measured < least:
            best, least = duals, measured
        stage += 1
        say(f"{drawn / num:,.0f} noises per image: shares deviate by {root(measured):.3f}")
    return Fit(best - best.mean(), root(least), drawn)


def descend(problem: Problem, duals: Tensor, step: float, first: int, a_step: int) -> Tensor:
    """Mean of the second half of ROUNDS steps from `duals`, of `a_step` noises from `first` on."""
    total = torch.zeros_like(duals)
    for number in range(ROUNDS):
        counts = problem.counts(duals, draws.DUALS, first + number * a_step, a_step)
        duals = duals - step * (counts / (a_step * problem.weights) - 1)
        total += duals if number >= ROUNDS // 2 else 0
    return total / (ROUNDS - ROUNDS // 2)


def root(mean_square: float) -> float:
    """The deviation of a mean square, which is an estimate and may be below 0."""
    return math.sqrt(max(0.0, mean_square))
