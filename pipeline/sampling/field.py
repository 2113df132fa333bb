"""The velocity that is integrated: of the class, or pushed away from a weaker one (guidance).

The weaker velocity is that of the same network without the class (classifier-free guidance, Ho &
Salimans 2022) or that of another network (autoguidance, Karras et al. 2024), at the times within
an interval (Kynkäänniemi et al. 2024) or at all.
"""

from copy import copy
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.compute import execution
from pipeline.config.schema import Sample
from pipeline.data.reader import to_uint8
from pipeline.flow import probability_path
from pipeline.reporting.learned import LearnedSolver
from pipeline.sampling import along_sigma, solvers
from pipeline.sampling.learned import Course
from pipeline.sampling.multistep import Past


class Field:
    """A solver.Velocity of a batch of images; counts the evaluations of networks for each.

    `labels` (B,) int64 are the classes of the images, `no_class` is the label that stands for
    none: a network that knows classes is guided by itself with that label. `guide` is the network
    that guides instead, with the class. `evaluations` (B,) int64 counts both networks.
    """

    def __init__(
        self,
        sample: Sample,
        net: nn.Module,
        labels: Tensor,
        no_class: int | None,
        guide: nn.Module | None = None,
        learned: LearnedSolver | None = None,
    ) -> None:
        """`no_class` None: the network knows no classes, and only a `guide` can guide it.

        `learned`: the solver, if sample.solver is `learned`.
        """
        self.sample, self.net, self.guide = sample, net, guide
        self.labels, self.no_class = labels, no_class
        self.guided = sample.guidance != 1 and (guide is not None or no_class is not None)
        self.interval = sample.guidance_interval
        self.evaluations = torch.zeros_like(labels)
        self.course = None if learned is None else Course(learned)
        # Of a multistep solver
        self.past: Past = []  # slopes of the last steps, all at times guided alike
        self.past_end = (0.0, False)  # the time that the last step led to; whether it was guided

    def __call__(self, x: Tensor, t: Tensor, rows: Tensor) -> Tensor:
        """Velocity (B',C,H,W) of the images `rows` (B',) of the batch, at x and times t (B',)."""
        labels = self.labels[rows]
        t = t.to(x.dtype) if x.is_floating_point() else t
        chosen = self.guided_rows(t)
        self.evaluations[rows] += 1

        # No image is guided at its time
        if not len(t[chosen]):
            return self.evaluate(self.net, x, t, labels)

        # The guided ones take a second evaluation
        self.evaluations[rows[chosen]] += 1
        strong, weak = self.branches(x, t, labels, chosen)
        moved = probability_path.guided(strong[chosen], weak, self.sample.guidance)
        return moved if isinstance(chosen, slice) else strong.index_copy(0, chosen, moved)

    def solve(self, x: Tensor, times: Tensor) -> Tensor:
        """The state (B,C,H,W) at times[-1] that is x at times[0], by the sampler's solver.

        `times` (N+1,) float64 increase; a fixed grid steps from each to the next. The velocity
        jumps at the edges of the guidance interval, so dopri5, whose error estimate needs a smooth
        one, ends a solve at each. Fixed grids step across them; multistep solvers then start anew.
        A multistep or a learned solver goes on from where the last call has ended.
        Raises ArithmeticError if a step of an adaptive solver underflows.
        """
        keys, start, stop = self.sample, float(times[0]), float(times[-1])
        if self.course is not None:
            return self.course.solve(self, x, times)
        if keys.multistep:
            return self.multistep(x, times)
        if keys.along_sigma:
            return along_sigma.solve(keys.solver, self, x, times)
        if not keys.adaptive or not self.guided:
            return solvers.solve(keys.solver, self, x, times, keys.rtol, keys.atol).x
        inner = [edge for edge in keys.guidance_edges if start < edge < stop]
        for ends in pairwise([start, *inner, stop]):
            section = torch.tensor(ends, dtype=torch.float64)
            part = self.within(*ends)
            x = solvers.solve(keys.solver, part, x, section, keys.rtol, keys.atol).x
        return x

    def multistep(self, x: Tensor, times: Tensor) -> Tensor:
        """As `solve`, by a multistep solver, a step at a time.

        Slopes on the other side of an edge of the guidance interval are forgotten, and all if the
        last call ended elsewhere.
        """
        keys = self.sample
        for step in times.unfold(0, 2, 1):
            start, stop = step.tolist()
            guided = self.guides(start, x.dtype)
            if self.past_end != (start, guided):
                self.past.clear()
            self.past_end = (stop, guided)
            if keys.along_sigma:
                x = along_sigma.solve(keys.solver, self, x, step, self.past)
            else:
                x = solvers.on_grid(keys.solver, self, x, step, self.past).x
        return x

    def guides(self, t: float, dtype: torch.dtype) -> bool:
        """Whether images are guided at time t in the dtype of the states; see `guided_rows`."""
        low, high = self.interval
        time = torch.tensor(t, dtype=dtype)
        return self.guided and bool((time >= low) & (time <= high))

    def pixels(self, x: Tensor) -> np.ndarray:
        """States (B,3,H,W) in [-1,1] as images uint8 (B,H,W,3) in host memory."""
        return to_uint8(x).permute(0, 2, 3, 1).contiguous().cpu().numpy()

    def within(self, start: float, stop: float) -> "Field":
        """This field at times that no edge of the interval parts: guided at all, or at none.

        An edge belongs to both of its sides. Evaluations are counted together.
        """
        low, high = self.interval
        part = copy(self)
        part.guided = self.guided and low <= start and stop <= high
        part.interval = (0.0, 1.0)
        return part

    def guided_rows(self, t: Tensor) -> slice | Tensor:
        """Which of the times t (B,) are guided, the ends of the interval included.

        A slice if they are all or none whatever the time, which does not wait for the device.
        """
        low, high = self.interval
        if not self.guided:
            return slice(0)
        if (low, high) == (0, 1):
            return slice(None)
        return ((t >= low) & (t <= high)).nonzero()[:, 0]

    def branches(
        self, x: Tensor, t: Tensor, labels: Tensor, chosen: slice | Tensor
    ) -> tuple[Tensor, Tensor]:
        """Velocity of all rows with their class, and the weaker one of the chosen rows.

        The network is called once, with both; a guide is called separately.
        """
        # Guided by a network
        if self.guide is not None:
            weak = self.evaluate(self.guide, x[chosen], t[chosen], labels[chosen])
            return self.evaluate(self.net, x, t, labels), weak

        # Guided by no class
        assert self.no_class is not None
        dropped_labels = torch.full_like(labels[chosen], self.no_class)
        velocities = self.evaluate(
            self.net,
            torch.cat([x, x[chosen]]),
            torch.cat([t, t[chosen]]),
            torch.cat([labels, dropped_labels]),
        )
        return velocities[: len(x)], velocities[len(x) :]

    def evaluate(self, net: nn.Module, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """Velocity by one network, in x's dtype, computed in sample.precision."""
        with execution.autocast(self.sample.precision, x.device):
            velocity: Tensor = net(x, t, labels)
        return velocity.to(x.dtype)
