"""Notices the first loss, gradient or weight that is not finite, without waiting for the device."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from pipeline.base.errors import UserError
from pipeline.compute.distributed import Ranks

KINDS = ("loss", "gradient", "weights")
NEVER = 2**62  # no run has so many items


class Watch:
    """For each of KINDS the first position of the run, in items, at which it was not finite.

    Each rank notes its own; `check` alone waits for the device and for the other ranks.
    """

    def __init__(self, group: Ranks) -> None:
        self.group = group
        self.first = torch.full((len(KINDS),), NEVER, dtype=torch.int64, device=group.device)

    def note(self, kind: str, value: Tensor, position: int) -> None:
        """`value` (a scalar) is of the items from `position` on."""
        index = KINDS.index(kind)
        bad = torch.where(torch.isfinite(value.detach()), NEVER, position)
        self.first[index] = torch.minimum(self.first[index], bad)

    def check(
        self,
        batch: int,
        micro: int,
        locate: Callable[[np.ndarray], str],
        remedy: str,
        unit: str,
    ) -> None:
        """Raise the same UserError on every rank if any of them noted something.

        It names the step, the positions of the micro-batch (of the whole batch, if every loss was
        finite) and where these items lie, which `locate` tells; `unit` is what they are called.
        Every rank must call it at the same step.
        """
        # Across all ranks
        positions = self.group.minimum(self.first.clone()).tolist()
        step = min(positions) // batch
        if min(positions) == NEVER:
            return

        # The earliest kind
        kind, start = next(
            (k, p) for k, p in zip(KINDS, positions, strict=True) if p // batch == step
        )

        # Named for the user
        items = np.arange(start, start + (micro if kind == "loss" else batch))
        verb = "are" if kind == "weights" else "is"
        raise UserError(
            f"the {kind} {verb} not finite at step {step + 1:,}, first at {unit} {items[0]:,} to "
            f"{items[-1]:,} of the run ({locate(items)}): {remedy}"
        )
