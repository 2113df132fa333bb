"""Everything that scores depend on except the samples, and the notes that a reader needs."""

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from pipeline.config.schema import Evaluate as Settings
from pipeline.data.pack import balance_note, chosen_note
from pipeline.reporting.records import Protocol
from pipeline.scoring.extractors import Extractor
from pipeline.scoring.inputs import Inputs
from pipeline.scoring.measure import Parts
from pipeline.scoring.mind import DIRECTIONS
from pipeline.scoring.scores import HELD, OF_FEATURES


def protocol_of(
    inputs: Inputs, extractor: Extractor, settings: Settings, parts: Parts | None
) -> Protocol:
    """The protocol of the scores of `inputs`; `parts` are None without real images."""
    num = settings.kid_subset_size if parts is None else min(len(parts.a), HELD)
    mind = {"mind_directions": DIRECTIONS} if "mind" in settings.metrics else {}
    return Protocol(
        extractor=extractor.name,
        weights_sha256=extractor.weights_sha256,
        reference=inputs.about,
        kid_subsets=settings.kid_subsets,
        kid_subset_size=min(settings.kid_subset_size, num),
        isc_splits=settings.isc_splits,
        prc_neighbourhood=settings.prc_neighbourhood,
        **mind,
        seed=settings.seed,
        # without +cpu or +cu130: the machine is not a part of the protocol
        versions={
            "torch": torch.__version__.partition("+")[0],
            "torch_fidelity": version("torch-fidelity"),
        },
    )


def notes_on(
    inputs: Inputs, extractor: Extractor, settings: Settings, parts: Parts | None
) -> list[str]:
    """Notes on the inputs, the weights, and the scores that are left out or of fewer images."""
    # Of the inputs
    notes = [*inputs.notes, *notes_on_classes(inputs)]
    # Of the weights
    if not extractor.known_weights:
        notes.append(
            f"the weights file of {extractor.title} is not the published one: compare only with "
            f"scores by the same file (sha256 {extractor.weights_sha256[:8]}…)"
        )
    if "isc" in settings.metrics and not extractor.has_logits:
        notes.append(
            f"the Inception score is left out: these weights of {extractor.title} have no last "
            "layer of the Inception network"
        )

    # Of the reference
    if parts is None:
        notes.append(
            "kernel distance, Monge distance, precision, recall and the bracket of the distance "
            "are left out: the reference holds statistics and no images"
        )
        return notes
    return notes + notes_on_counts(settings, len(parts.a))


def notes_on_classes(inputs: Inputs) -> list[str]:
    """A note if samples are of chosen classes, or balanced if the real images are not."""
    # Chosen classes
    chosen = chosen_classes(inputs.how)
    if chosen and (note := chosen_note(len(chosen), len(inputs.classes))):
        return [note]

    # Balanced classes
    if inputs.labels is None or inputs.real_labels is None:
        return []
    counts, real = (
        np.bincount(labels, minlength=len(inputs.classes))
        for labels in (inputs.labels, inputs.real_labels)
    )
    note = balance_note(real) if counts.max() - counts.min() <= 1 else ""
    return [note] if note else []


def chosen_classes(how: Mapping[str, Any]) -> list[Any]:
    """The list in sample.classes of samples with that sample.json; empty if there is none."""
    sample = how.get("config")
    for key in ("sample", "classes"):
        sample = sample.get(key) if isinstance(sample, Mapping) else None
    return sample if isinstance(sample, list) else []


def notes_on_counts(settings: Settings, num: int) -> list[str]:
    """Notes if fewer images are compared than the `num` on each side or the configured subset."""
    # Capped number of features
    notes = []
    if num > HELD and OF_FEATURES & set(settings.metrics):
        notes.append(
            f"kernel distance, Monge distance, precision and recall compare {HELD:,} images on "
            f"each side instead of {num:,}: no more features are held"
        )
    # Smaller subsets
    if num < settings.kid_subset_size and "kid" in settings.metrics:
        notes.append(
            f"kid_subset_size is {num} instead of {settings.kid_subset_size}: there are no more "
            "images on each side"
        )
    return notes
