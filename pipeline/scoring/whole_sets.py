"""The sets of kernel distance, precision and recall: all samples, and the real images against them.

Other programs compare all samples that there are with all real images. So do these scores, of at
most HELD images on each side, since they need the features themselves.
"""

import numpy as np
import torch
from torch import Tensor

from pipeline.scoring.keepers import Held, mask
from pipeline.scoring.kept_features import HELD, draw


def num_held(total: int) -> int:
    """Images of a set of `total` whose features are held."""
    return min(total, HELD)


class RealSet:
    """Features of real images: of part B of the bracket, then of A, then of others, up to HELD."""

    def __init__(self, a: np.ndarray, b: np.ndarray, total: int, width: int, seed: int) -> None:
        """`a` and `b`: rows of the parts, of `total` images; `seed`: by which they were drawn."""
        others = draw(total, total, seed)[len(a) + len(b) :]
        rows = np.concatenate([b, a, others])[:HELD]
        wanted = mask(rows, total)
        self.in_b, self.in_a, self.in_rest = (
            Held(wanted & mask(part, total), width) for part in (b, a, others)
        )
        self.rest = np.sort(rows[len(a) + len(b) :])  # rows to show beside both parts

    @property
    def features(self) -> Tensor:
        """(M,D) float32 on the CPU; on rank 0, once all three have been finished."""
        return torch.cat([held.features for held in (self.in_b, self.in_a, self.in_rest)])
