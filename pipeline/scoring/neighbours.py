"""The nearest real images of a few samples in feature space, to see whether they are copies.

Distances are Euclidean. A running search keeps the nearest so far, so no features are held. How far
real images lie from each other says what a distance means: beside those of the samples stands the
median distance of real images of part A to their nearest in part B.
"""

from itertools import zip_longest
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.compute.distributed import Ranks
from pipeline.drawing.tiles import spread
from pipeline.reporting.records import NeighboursAbout
from pipeline.scoring.keepers import Batch

SAMPLES = 8  # that are searched for
NEAREST = 5  # neighbours of each
REAL = 100  # images of part A whose nearest in part B is searched


def queries(labels: np.ndarray | None, num: int) -> np.ndarray:
    """Rows of the samples to search for: the first of SAMPLES classes, evenly spread over all.

    Of fewer classes the first few each; without labels the first rows.
    """
    if labels is None:
        return np.arange(min(SAMPLES, num))
    firsts = [np.flatnonzero(labels == c)[:SAMPLES].tolist() for c in spread(labels, SAMPLES)]
    rounds = [row for turn in zip_longest(*firsts) for row in turn if row is not None]
    return np.array(sorted(rounds[:SAMPLES], key=lambda row: (labels[row], row)))


class Nearest:
    """The `count` images nearest to each of the features `queries` (Q,D), of those shown to it."""

    def __init__(self, queries: Tensor, count: int) -> None:
        self.queries, self.count = queries.double(), count
        self.distances = np.empty((len(queries), 0))  # (Q,<=count), ascending
        self.rows = np.empty((len(queries), 0), np.int64)

    def add(self, batch: Batch) -> None:
        """Compare a batch; without matrix products, so that a copy is at distance 0."""
        distances = torch.cdist(
            self.queries,
            batch.features.double(),
            compute_mode="donot_use_mm_for_euclid_dist",
        )
        rows = np.broadcast_to(batch.rows, distances.shape)
        self.merge(distances.cpu().numpy(), rows)

    def merge(self, distances: np.ndarray, rows: np.ndarray) -> None:
        """Take further images at `distances` (Q,B); of equal ones the lowest row comes first."""
        distances = np.concatenate([self.distances, distances], 1)
        rows = np.concatenate([self.rows, rows], 1)
        order = np.lexsort((rows, distances), axis=1)[:, : self.count]
        self.distances = np.take_along_axis(distances, order, 1)
        self.rows = np.take_along_axis(rows, order, 1)

    def finish(self, group: Ranks) -> None:
        """On rank 0, keep the nearest of the images that all ranks have seen."""
        distances = group.gather(torch.from_numpy(self.distances.T.copy()))
        rows = group.gather(torch.from_numpy(self.rows.T.copy()))
        for further, further_rows in list(zip(distances, rows, strict=True))[1:]:
            self.merge(further.numpy().T, further_rows.numpy().T)


class Neighbours(NamedTuple):
    """The nearest real images of the samples `rows`."""

    # Of the samples
    rows: np.ndarray  # (Q,) of the samples
    real_rows: np.ndarray  # (Q,k) of their nearest real images
    distances: np.ndarray  # (Q,k)
    # Size of the search
    searched: int  # real images
    total: int  # all real images
    # For comparison
    real: float  # median distance of real images to their nearest of `real_searched` others
    real_searched: int

    def record(self) -> NeighboursAbout:
        """For the metrics file."""
        return NeighboursAbout(
            searched=self.searched,
            total=self.total,
            samples=self.rows.tolist(),
            rows=self.real_rows.tolist(),
            distances=self.distances.tolist(),
            real=self.real,
            real_searched=self.real_searched,
        )

    def caption(self) -> list[str]:
        """Lines below the picture."""
        # Size of the search
        share = f"{self.searched:,}"
        if self.searched < self.total:  # a copy of one of the others would not be seen
            share += f" ({self.searched / self.total:.1%}) of {self.total:,}"
        # Two lines
        return [
            f"nearest of {share} real images, with their distance in feature space",
            f"real images to their nearest of {self.real_searched:,} others: "
            f"{self.real:.4g} (median)",
        ]
