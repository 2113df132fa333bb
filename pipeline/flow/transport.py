"""Noise and image by semidiscrete optimal transport: train.coupling=semidiscrete.

Position n of the run has the noise and the class that it has with any coupling; its image is the
best atom of this class (of the pack, if the network knows no classes) for its noise, see
pipeline/flow/atoms.py. So the pair follows from (seed, n) and the pack with its duals alone, and
the noise of every class, as of all images together, is standard normal as in sampling.
"""

import numpy as np
import torch
from torch import Tensor

from pipeline.base.errors import UserError
from pipeline.data.reader import Reader, moved, rows_at
from pipeline.flow.atoms import Atoms, in_units, views


def cells_of(labels: np.ndarray, within_classes: bool) -> list[np.ndarray]:
    """Rows of each class, of labels (N,), by its number; of all images if not within classes."""
    if not within_classes:
        return [np.arange(len(labels))]
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.searchsorted(labels[order], np.arange(1, labels.max() + 1)))


class Transport:
    """The map from noise to images of an open pack with duals."""

    def __init__(self, reader: Reader, within_classes: bool, flip: bool) -> None:
        """Raises UserError if the pack has no duals."""
        if reader.pack.duals is None:
            raise UserError(
                "train.coupling=semidiscrete needs the duals of the pack, and it has none: open "
                "it with them, as pipeline.train does"
            )
        self.reader, self.within_classes, self.flip = reader, within_classes, flip
        # On the device
        duals = in_units(moved(reader.pack.duals, reader.device))
        rows = [moved(cell, reader.device) for cell in cells_of(self.labels, within_classes)]
        self.cells = [(cell, duals[cell]) for cell in rows]
        self.device_labels = moved(self.labels, reader.device)

    @property
    def labels(self) -> np.ndarray:
        """Labels (N,) int64 of the pack."""
        return np.array(self.reader.pack.labels)

    def chosen(self, positions: np.ndarray, x0: Tensor) -> tuple[Tensor, Tensor]:
        """Rows (B,) int64 for the noises x0 (B,3,H,W) at `positions` (B,), and whether mirrored."""
        # Classes of the positions
        reader = self.reader
        rows = rows_at(positions, reader.seed, len(reader.pack))
        cells = reader.pack.labels[rows] if self.within_classes else np.zeros_like(rows)
        queries = views(x0.permute(0, 2, 3, 1), self.flip)

        # The best image of each
        best = torch.zeros(len(x0), dtype=torch.int64, device=reader.device)
        view = torch.zeros_like(best)
        for cell in np.unique(cells):
            index = moved(np.flatnonzero(cells == cell), reader.device)
            own, duals = self.cells[cell]
            atoms = Atoms(own, x0[0].numel(), reader.take)
            place, view[index] = atoms.best([query[index] for query in queries], duals)
            best[index] = own[place]
        return best, view.bool()

    def images(self, positions: np.ndarray, x0: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels uint8 (B,3,H,W) and labels (B,) for the noises x0 at `positions` (B,)."""
        rows, mirrored = self.chosen(positions, x0)
        pixels = self.reader.take(rows)
        pixels = torch.where(mirrored.view(-1, 1, 1, 1), pixels.flip(2), pixels)
        return pixels.permute(0, 3, 1, 2), self.device_labels[rows]
