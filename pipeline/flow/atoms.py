"""Images as atoms of a distribution: which of them is the best for a noise, exactly.

Semidiscrete optimal transport (Aurenhammer et al. 1998; for flow matching arXiv 2509.25519) sends
the noise x to the atom y_j with the largest <x, y_j> + h_j, of all atoms with their duals h_j. The
product is computed in integers, which float64 holds exactly: levels of 0 … 255, and noise in units
of 2^-24. So neither the split of a batch, nor the order of a sum, nor the device's product decides
which atom is the largest; of equal ones the first is taken.
"""

import hashlib
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

UNIT = 2.0**-24  # of the noise; 255 / UNIT times the noise of 256 x 256 px stays below 2^53
LEVEL = 127.5  # levels of a pixel per unit of [-1,1]
CHUNK = 2**25  # values of atoms that are float64 at once

Take = Callable[[Tensor], Tensor]  # rows (K,) int64 -> pixels (K,H,W,C) uint8 on their device


def integers(noise: Tensor) -> Tensor:
    """Noise (B,H,W,C) float32 in units, rounded: (B,D) float64."""
    return noise.flatten(1).double().div_(UNIT).round_()


def views(noise: Tensor, flip: bool) -> list[Tensor]:
    """Noise (B,H,W,C) as `integers`; with `flip` also mirrored.

    Its product with an image, when mirrored, is that of the noise with the mirrored image.
    """
    return [integers(noise), integers(noise.flip(2))] if flip else [integers(noise)]


def in_units(duals: Tensor) -> Tensor:
    """Duals (N,) float64 as they are added to products of `integers` and levels, rounded."""
    return duals.mul(LEVEL / UNIT).round_()


class Atoms:
    """Images of some rows of a pack, in chunks on a device."""

    def __init__(self, rows: Tensor, num_values: int, take: Take, held: bool = False) -> None:
        """`rows` (N,) int64 on the device of `take`, whose images have `num_values` each; `held`:
        they stay on the device as levels if one chunk holds them all.
        """
        self.rows, self.take = rows, take
        self.size = max(1, CHUNK // num_values)
        self._held = self._levels(rows) if held and len(rows) <= self.size else None

    def __len__(self) -> int:
        return len(self.rows)

    def _levels(self, rows: Tensor) -> Tensor:
        """Levels (K,D) float64 of rows (K,)."""
        return self.take(rows).flatten(1).double()

    def chunks(self) -> Iterator[tuple[int, Tensor]]:
        """Place of the first atom, and levels (K,D) float64, of each chunk."""
        if self._held is not None:
            yield 0, self._held
            return
        for first in range(0, len(self.rows), self.size):
            yield first, self._levels(self.rows[first : first + self.size])

    def best(self, queries: list[Tensor], duals: Tensor) -> tuple[Tensor, Tensor]:
        """The place (B,) int64 of the best atom for noises, and the view (B,) that it is best for.

        `queries`: the `views` (B,D) of the noises; `duals` (N,): `in_units`.
        """
        best = torch.full_like(queries[0][:, 0], -torch.inf)
        place, view = (torch.zeros_like(best, dtype=torch.int64) for _ in range(2))
        for first, levels in self.chunks():
            for number, query in enumerate(queries):
                scores = (query @ levels.T).add_(duals[first : first + len(levels)])
                value, index = scores.max(dim=1)
                is_better = value > best
                best = torch.where(is_better, value, best)
                place = torch.where(is_better, index + first, place)
                view = torch.where(is_better, number, view)
        return place, view


def distinct(images: np.ndarray, rows: np.ndarray, flip: bool) -> tuple[np.ndarray, np.ndarray]:
    """The rows whose image is the first of its kind, in order, and how many have it: (K,), (K,).

    `images` (N,H,W,C) uint8; with `flip` a mirrored image is a copy, too.
    """
    first: dict[bytes, int] = {}
    counts: dict[int, int] = {}
    for row in rows.tolist():
        sides = [images[row], images[row][:, ::-1]] if flip else [images[row]]
        key = min(hashlib.blake2b(side.tobytes(), digest_size=16).digest() for side in sides)
        kept = first.setdefault(key, row)
        counts[kept] = counts.get(kept, 0) + 1
    return np.array([*counts], np.int64), np.array([*counts.values()], np.int64)
