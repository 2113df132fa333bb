"""Predicted sentence vectors on disk: a folder that `predict` writes and `score` reads.

predicted.npy   float32 (N,D), as the network sees vectors: normalised
rows.npy        int64 (N,), the row of each target among the vectors of the pack
predict.json    how they were made
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from pipeline.base.errors import UserError
from pipeline.base.json_objects import JsonObject
from pipeline.base.npy import load_npy
from pipeline.concept.pack import Record
from pipeline.config.concept_keys import Concept
from pipeline.config.model_keys import kind_of
from pipeline.reporting.records import TrainAbout


class PredictAbout(JsonObject):
    """How predictions were made."""

    KIND: ClassVar[str] = "a description of predictions"
    REMEDY: ClassVar[str] = "run `python -m pipeline.predict` again"

    # What was predicted
    record: Record  # of the pack
    normaliser_sha256: str
    config: dict[str, object]  # the keys that the step read
    num_documents: int
    num_targets: int
    # By what
    weights_sha256: str
    train: TrainAbout
    # On what
    seconds: float
    device: str
    world_size: int

    @property
    def keys(self) -> Concept:
        """The keys of `concept` that the step read; others have their defaults."""
        return Concept.model_validate(self.config["concept"])

    @property
    def denoised(self) -> bool:
        """Whether the predictions came out of noise."""
        return kind_of((self.train.config or {}).get("model")) == "lcm_two_tower"

    @property
    def samples(self) -> bool:
        """Whether the predictions are samples: from noise alone, one step gives a mean."""
        return self.denoised and self.keys.denoising_steps > 1


@dataclass(frozen=True)
class Predictions:
    """Predictions (N,D) float32 of the rows (N,) int64 of a pack, memory-mapped."""

    predicted: np.ndarray
    rows: np.ndarray
    about: PredictAbout


def open_predictions(folder: Path) -> Predictions:
    """The predictions in a folder; raises UserError if they are missing or damaged."""
    about = PredictAbout.read(folder / "predict.json")
    predicted, rows = load_npy(folder / "predicted.npy"), load_npy(folder / "rows.npy")
    shapes = (about.num_targets, about.record.dimension), (about.num_targets,)
    if (predicted.shape, rows.shape) != shapes or predicted.dtype != np.float32:
        raise UserError(
            f"predictions {folder} are damaged (not as predict.json says): {PredictAbout.REMEDY}"
        )
    return Predictions(predicted, rows, about)
