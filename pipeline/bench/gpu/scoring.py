"""Scoring: images/s through each feature extractor whose weights are at hand, by batch size."""

import time
from typing import Any

import numpy as np

from pipeline.base.errors import UserError
from pipeline.bench import record
from pipeline.bench.gpu.scale import Scale, Unavailable
from pipeline.training.calibration import finish

SIZE = 64  # px of the images
BATCHES = (64, 256)
REPEATS = 10  # batches of a round at most


def by_extractor(scale: Scale) -> dict[str, Any]:
    """Every extractor with every number of images at once: uint8 in host memory to features.

    Raises Unavailable if no extractor can be loaded here.
    """
    # torch-fidelity and EfficientNet are packages that a bare machine lacks
    try:
        from pipeline.scoring.extractors import load_extractor
        from pipeline.scoring.kinds import KINDS
    except ImportError as error:
        raise Unavailable(f"the package {error.name} is not installed") from error
    # Every one that can be loaded
    values: dict[str, list[float]] = {}
    notes: list[str] = []
    for name in KINDS:
        try:
            extractor = load_extractor(name, None, scale.device)
        except (UserError, ImportError) as error:
            notes.append(f"{name} was not measured: {error}")
            continue
        for batch in sorted({min(size, scale.largest) for size in BATCHES}):
            values[f"{name}, {batch} at once"] = rates(extractor, batch, scale)
    if not values:
        raise Unavailable("the weights of no feature extractor are on this machine")
    # Against the first
    title = f"features of images of {SIZE} px, from host memory to the device"
    return record.summary(title, "images/s", values, next(iter(values))) | {"notes": notes}


def rates(extractor: Any, batch: int, scale: Scale) -> list[float]:
    """Images/s of each round, after a batch that is not timed."""
    # One batch unseen
    images = np.random.default_rng(0).integers(0, 256, (batch, SIZE, SIZE, 3), np.uint8)
    extractor.features(images)
    finish(scale.device)
    # Then the timed ones
    repeats, values = min(REPEATS, scale.steps), []
    for _ in range(scale.rounds):
        began = time.monotonic()
        for _ in range(repeats):
            extractor.features(images)
        finish(scale.device)
        values.append(repeats * batch / (time.monotonic() - began))
    return values
