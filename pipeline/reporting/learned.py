"""The record of a solver that was fitted to one network: see pipeline/solver.py."""

import math
from itertools import pairwise
from typing import ClassVar

from pydantic import model_validator

from pipeline.base.errors import UserError
from pipeline.base.json_objects import JsonObject
from pipeline.config.samplers import sampler_name
from pipeline.config.schema import Sample


class GridTry(JsonObject):
    """A grid of times that was tried, t(u) = 1 - (1 - u^a)^b of equally spaced u, and its error."""

    a: float
    b: float
    error: float  # as the solver's; without `iterations` the mean logarithm of squared errors


class LearnedSolver(JsonObject):
    """A solver of n steps: times, and the numbers that combine the noise and the slopes.

    x_(k+1) = c_k0 x_0 + sum over j <= k of c_k(j+1) v(x_j, t_j): the solvers of Shaul et al. 2024
    (arXiv 2403.01329), of which each classical one is an example.
    """

    KIND: ClassVar[str] = "a fitted solver"
    REMEDY: ClassVar[str] = "run `python -m pipeline.solver` again"

    # The solver
    times: list[float]  # n+1 of them, from 0 (noise) to 1 (image)
    coefficients: list[list[float]]  # row k: k+2 numbers, of the noise and of the slopes 0 … k
    # Of what
    sampler: str
    weights: str  # hex sha256 of the file of weights
    guide: str | None  # likewise; None: without a guide
    # How it was fitted
    num: int  # images
    seed: int
    error: float  # root mean square distance of their values, in [-1, 1], from dopri5's
    evaluations: int  # of networks, for all of it
    tries: list[GridTry]
    iterations: int | None = None  # of the refinement; None: fitted step by step alone

    @model_validator(mode="after")
    def _is_whole(self) -> "LearnedSolver":
        times, rows = self.times, self.coefficients
        numbers = [*times, *(number for row in rows for number in row)]
        are_fitting = len(times) == len(rows) + 1 >= 2
        if not are_fitting or [len(row) for row in rows] != [k + 2 for k in range(len(rows))]:
            raise ValueError("expected one row of numbers for each step, each longer by one")
        if not all(map(math.isfinite, numbers)):
            raise ValueError("expected finite numbers")
        if (times[0], times[-1]) != (0, 1) or any(a >= b for a, b in pairwise(times)):
            raise ValueError("expected increasing times from 0 to 1")
        return self

    def in_words(self) -> str:
        """How near it comes to dopri5, a sentence."""
        num = len(self.coefficients)
        steps = "1 step that was" if num == 1 else f"{num} steps that were"
        return (
            f"{self.sampler} takes {steps} fitted to {self.num:,} images of dopri5 with seed "
            f"{self.seed}: pixel values, from -1 to 1, differ from its by {self.error:.3g} (RMS)."
        )

    def check(self, sample: Sample) -> None:
        """Raise UserError if it was fitted for another sampler."""
        if self.sampler != (name := sampler_name(sample)):
            raise UserError(
                f"the fitted solver is one for {self.sampler}, and the sampler is {name}: fit one "
                "by `python -m pipeline.solver` with the same keys"
            )
