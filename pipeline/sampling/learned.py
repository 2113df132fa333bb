"""A solver whose times and coefficients were fitted to the network: sample.solver=learned."""

from torch import Tensor

from pipeline.reporting.learned import LearnedSolver
from pipeline.sampling.ode import Velocity, all_rows, combine, filled


class Course:
    """A batch of images on its way by a fitted solver."""

    def __init__(self, solver: LearnedSolver) -> None:
        """The way begins with the first call of `solve`."""
        self.solver = solver
        self.known: list[Tensor] = []  # the noise, and the slopes so far, each (B,C,H,W)

    def solve(self, velocity: Velocity, x: Tensor, times: Tensor) -> Tensor:
        """The state at times[-1] that is x (B,C,H,W) at times[0]; one evaluation per step.

        `times` (N+1,) are the solver's, or a slice of them that begins where the last call ended:
        then the arithmetic is that of one call for all.
        """
        # At which step
        first = self.solver.times.index(float(times[0]))
        if first == 0:
            self.known = [x]
        assert first == len(self.known) - 1, "steps follow each other"

        # Step by step
        for k in range(first, first + len(times) - 1):
            t = filled(x, self.solver.times[k])
            self.known.append(velocity(x, t, all_rows(x)))
            x = combine(self.solver.coefficients[k], self.known)
        return x
