"""Files of duals: one number per image of a pack, of train.coupling=semidiscrete.

They say which share of all noise goes to an image: pipeline/flow/atoms.py. A file is an .npz with
them, what they depend on, and how far the shares are from uniform.
"""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.base.errors import UserError
from pipeline.base.files import atomic_stream
from pipeline.base.npy import NPZ_ERRORS
from pipeline.data.pack import Pack, Record


@dataclass(frozen=True)
class Duals:
    """Duals of the images of one pack, and how they were fitted."""

    values: np.ndarray  # (N,) float64; -inf: an earlier image has the same pixels, and its share
    # Which problem they solve
    images_sha256: str  # of the pack
    labels_sha256: str
    within_classes: bool  # each class has all of the noise, else all images share it
    flip: bool  # a mirrored image is another atom, with the same dual
    # How well
    tolerance: float
    deviation: float  # RMS over the images of share / uniform - 1, by noises that fitted nothing
    worst_deviation: float  # of a class
    draws: float  # noises per image that fitted them, in the class that needed most
    reached: bool  # whether each class is within the tolerance

    def in_words(self) -> str:
        """How far the shares of noise are from uniform."""
        of_class = f", at most {self.worst_deviation:.3f} in a class" if self.within_classes else ""
        return (
            f"each image gets the same share of the noise up to {self.deviation:.3f} of it "
            f"(RMS{of_class})"
        )

    @property
    def sha256(self) -> str:
        """Hex sha256 of the duals."""
        return hashlib.sha256(self.values.astype("<f8").tobytes()).hexdigest()


def save_duals(path: Path, duals: Duals) -> None:
    """Write duals as .npz with their hash, atomically."""
    with atomic_stream(path) as stream:
        np.savez(stream, **vars(duals), sha256=duals.sha256)


def load_duals(path: Path) -> Duals:
    """The duals in `path`; raises UserError if it is missing or damaged."""
    try:
        with np.load(path, allow_pickle=False) as data:
            content: dict[str, Any] = {key: data[key] for key in data}
        sha256, values = str(content.pop("sha256")), content.pop("values")
        duals = Duals(values, **{key: value.item() for key, value in content.items()})
        if duals.sha256 != sha256 or values.dtype != np.float64 or values.ndim != 1:
            raise ValueError("another hash")
    except FileNotFoundError as error:
        raise UserError(
            f"the duals {path} of train.coupling=semidiscrete are missing: run `make train`, or "
            "`python -m pipeline.coupling` with the same config"
        ) from error
    except NPZ_ERRORS as error:
        raise UserError(
            f"the duals {path} are damaged, or not of this pipeline: delete the file and run "
            "`make train`, or `python -m pipeline.coupling` with the same config"
        ) from error
    return duals


def check_duals(path: Path, duals: Duals, record: Record, within_classes: bool, flip: bool) -> None:
    """Raise UserError unless duals are of the pack of `record` and of this problem."""
    # The pack
    hashes = (duals.images_sha256, duals.labels_sha256)
    if hashes != (record.sha256.images, record.sha256.labels):
        raise UserError(
            f"the duals {path} are of a pack with sha256 {hashes[0][:8]}…, but this pack has "
            f"{record.sha256.images[:8]}…: give the duals of this pack, or run "
            "`python -m pipeline.coupling` with the same config"
        )

    # The problem
    wanted = {"model.class_conditional": within_classes, "train.flip": flip}
    for (key, here), there in zip(wanted.items(), (duals.within_classes, duals.flip), strict=True):
        if here != there:
            raise UserError(
                f"the duals {path} were fitted with {key}={str(there).lower()}, but the training "
                f"has {key}={str(here).lower()}: give those of these keys, or run "
                "`python -m pipeline.coupling` with the same config"
            )


def with_hash(record: Record, duals: Duals) -> Record:
    """The record of a pack with the hash of its duals, on which a training depends, too."""
    sha256 = record.sha256.model_copy(update={"duals": duals.sha256})
    return record.model_copy(update={"sha256": sha256})


def with_duals(pack: Pack, duals: Duals) -> Pack:
    """`pack` with duals, and their hash in its record."""
    return replace(pack, record=with_hash(pack.record, duals), duals=duals.values)
