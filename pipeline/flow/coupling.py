"""Which noise goes with which image: any, or the nearest within groups (optimal transport).

A group is so many consecutive positions of the run, n // size = constant; the batch is a multiple
of it, so no group lies in two steps. A rank whose micro-batch cuts through a group draws the whole
group, solves it as the other ranks do, and keeps its own part: the pairs are a pure function of
(seed, position). Micro-batches that are multiples of the group draw nothing twice.
"""

import numpy as np
from torch import Tensor

from pipeline.compute import draws
from pipeline.config.schema import Train
from pipeline.data.reader import Reader, load_batch, moved

DECIMALS = 6  # of a cost: far above the rounding of its sum, far below what tells two apart


def whole_groups(positions: np.ndarray, size: int) -> np.ndarray:
    """All positions, in order, of the groups of `size` that `positions` (B,) int64 touch."""
    groups = np.unique(positions // size)
    return (groups[:, None] * size + np.arange(size)).ravel()


def assign(x0: Tensor, x1: Tensor) -> np.ndarray:
    """Row of x0 for each row of x1, both (G,3,H,W), so that the sum of |x0 - x1|² is least.

    Exact (linear_sum_assignment). Of |x0 - x1|² only -2 x0·x1 depends on the pairing, so the sum
    of the products is made greatest: in float64 on the CPU, and rounded, so that equal images stay
    equal and the order of a sum over pixels (number of threads) decides nothing. Waits for a GPU.
    """
    from scipy.optimize import linear_sum_assignment  # half a second, which other couplings save

    noises, images = (x.cpu().double().flatten(1).numpy() for x in (x0, x1))
    rows, columns = linear_sum_assignment((images @ noises.T).round(DECIMALS), maximize=True)
    return columns[np.argsort(rows)]


def assign_groups(x0: Tensor, x1: Tensor, size: int) -> np.ndarray:
    """`assign` in each `size` consecutive rows of x0, x1 (B,3,H,W), B a multiple of `size`."""
    starts = range(0, len(x0), size)
    parts = [start + assign(x0[start : start + size], x1[start : start + size]) for start in starts]
    return np.concatenate(parts)


def pairs(reader: Reader, train: Train, positions: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    """Noise x0 and images x1 (B,3,H,W) float32, labels (B,) int64, at `positions` (B,) of the run.

    Images and labels are those of their positions; the noise moves within its group.
    """
    grouped = train.coupling == "optimal_transport"
    drawn = whole_groups(positions, train.coupling_images) if grouped else positions
    x1, labels = load_batch(reader, drawn, train.flip)
    index = moved(drawn, reader.device)
    x0 = draws.normal(train.seed, draws.TRAIN_NOISE, index, tuple(x1.shape[1:]))
    if not grouped:
        return x0, x1, labels
    wanted = np.searchsorted(drawn, positions)
    partners = assign_groups(x0, x1, train.coupling_images)[wanted]
    kept = moved(wanted, reader.device)
    return x0[moved(partners, reader.device)], x1[kept], labels[kept]
