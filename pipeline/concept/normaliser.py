"""Median and scale of each dimension of sentence vectors, as a file beside their pack."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Literal

import numpy as np

from pipeline.base.errors import UserError
from pipeline.base.files import atomic_stream
from pipeline.base.npy import NPZ_ERRORS

Scale = Literal["quartiles", "lcm_tails"]
# Quantiles whose distance is the scale. LCM hands 0.25 and 0.75 to a scaler that counts in percent.
QUANTILES: dict[Scale, tuple[float, float]] = {
    "quartiles": (0.25, 0.75),
    "lcm_tails": (0.0025, 0.0075),
}
COLUMNS = 32  # dimensions whose quantiles are taken at a time, to save memory


@dataclass(frozen=True)
class Normaliser:
    """Center and scale (D,) float32 of each dimension, and the dimensions without a spread."""

    center: np.ndarray
    scale: np.ndarray
    constant: tuple[int, ...] = ()  # dimensions whose scale is 1, since the two quantiles are equal

    @property
    def sha256(self) -> str:
        """Hex sha256 of center and scale."""
        parts = (np.ascontiguousarray(part, "<f4").tobytes() for part in (self.center, self.scale))
        return hashlib.sha256(b"".join(parts)).hexdigest()

    def write(self, path: Path) -> None:
        """Write an .npz, atomically."""
        with atomic_stream(path) as stream:
            np.savez(
                stream,
                center=self.center,
                scale=self.scale,
                constant=np.array(self.constant, np.int64),
            )

    @classmethod
    def read(cls, path: Path) -> "Normaliser":
        """The normaliser in a file; raises UserError if it is missing or damaged."""
        try:
            with np.load(path, allow_pickle=False) as arrays:
                center, scale, constant = (arrays[k] for k in ("center", "scale", "constant"))
        except FileNotFoundError as error:
            raise UserError(f"{path} is missing: run `python -m pipeline.prepare`") from error
        except NPZ_ERRORS as error:
            raise UserError(
                f"{path} is not a readable normaliser ({error}): delete it and run "
                "`python -m pipeline.prepare` again"
            ) from error
        return cls(center, scale, tuple(constant.tolist()))


def fit(vectors: np.ndarray, scale: Scale) -> Normaliser:
    """The normaliser of vectors (N,D), N >= 1: medians, and a robust standard deviation.

    That is the distance of two quantiles over what it is for a normal distribution; 1 if it is 0.
    """
    low, high = QUANTILES[scale]
    width = NormalDist().inv_cdf(high) - NormalDist().inv_cdf(low)
    parts = [
        np.quantile(
            vectors[:, first : first + COLUMNS].astype(np.float64), [low, 0.5, high], axis=0
        )
        for first in range(0, vectors.shape[1], COLUMNS)
    ]
    below, median, above = np.concatenate(parts, axis=1)
    spread = (above - below) / width
    constant = np.flatnonzero(spread.astype(np.float32) == 0)
    spread[constant] = 1.0
    return Normaliser(
        median.astype(np.float32), spread.astype(np.float32), tuple(constant.tolist())
    )
