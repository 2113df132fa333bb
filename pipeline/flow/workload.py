"""What a training step of flow matching sees: images, noise, times and labels by position."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from pipeline.compute import draws
from pipeline.config.schema import Config
from pipeline.data.reader import Reader, moved
from pipeline.flow import coupling, probability_path
from pipeline.flow.times import sample_times


@dataclass(frozen=True)
class Batch:
    """x1 images, x0 noise (B,3,H,W) float32; t (B,) in [0,1]; labels (B,) with dropout applied."""

    x0: Tensor
    x1: Tensor
    t: Tensor
    labels: Tensor


def draw(reader: Reader, config: Config, positions: np.ndarray) -> Batch:
    """All that the given positions (B,) of the run see: a pure function of (seed, position)."""
    train, seed, classes = config.train, config.train.seed, reader.pack.record["classes"]
    x0, x1, labels = coupling.pairs(reader, train, positions)
    index = moved(positions, reader.device)
    uniform = draws.uniform(seed, draws.TIME, index)
    dropped = draws.uniform(seed, draws.LABEL_DROPOUT, index)
    return Batch(
        x0=x0,
        x1=x1,
        t=sample_times(train.times, uniform, train.time_mean, train.time_std),
        labels=probability_path.drop_labels(labels, dropped, train.label_dropout, len(classes)),
    )
