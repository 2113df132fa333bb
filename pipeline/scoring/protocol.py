"""Everything that scores depend on except the samples, and the notes that a reader needs."""

from collections.abc import Iterator, Mapping
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from pipeline.config.schema import Evaluate as Settings
from pipeline.data.pack import balance_note, chosen_note
from pipeline.reporting.records import Protocol
from pipeline.scoring.extractors import Extractor
from pipeline.scoring.image_sets import ImageSet
from pipeline.scoring.inputs import Inputs
from pipeline.scoring.measure import Parts
from pipeline.scoring.mind import DIRECTIONS
from pipeline.scoring.scores import OF_FEATURES, OF_SETS
from pipeline.scoring.whole_sets import num_held


def protocol_of(inputs: Inputs, extractor: Extractor, settings: Settings) -> Protocol:
    """The protocol of the scores of `inputs`."""
    num = settings.kid_subset_size if inputs.real is None else fewest(inputs, inputs.real)
    more = {"mind_directions": DIRECTIONS} if "mind" in settings.metrics else {}
    if inputs.real and OF_SETS & set(settings.metrics):
        more["num_feature_images"] = num_held(len(inputs.real))
    return Protocol(
        extractor=extractor.name,
        weights_sha256=extractor.weights_sha256,
        reference=inputs.about,
        kid_subsets=settings.kid_subsets,
        kid_subset_size=min(settings.kid_subset_size, num),
        isc_splits=settings.isc_splits,
        prc_neighbourhood=settings.prc_neighbourhood,
        **more,
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
    return notes + list(notes_on_counts(inputs, settings, len(parts.a)))


def notes_on_classes(inputs: Inputs) -> list[str]:
    """A note if samples are of chosen classes, or of all alike if the real images are not."""
    # Chosen classes
    choice = choice_of_classes(inputs.how)
    chosen = choice if isinstance(choice, list) else []
    if chosen and (note := chosen_note(len(chosen), len(inputs.classes))):
        return [note]

    # Balanced classes
    if inputs.labels is None or inputs.real_labels is None:
        return []
    counts, real = (
        np.bincount(labels, minlength=len(inputs.classes))
        for labels in (inputs.labels, inputs.real_labels)
    )
    are_alike = choice == "random" or counts.max() - counts.min() <= 1
    note = balance_note(real) if are_alike else ""
    return [note] if note else []


def choice_of_classes(how: Mapping[str, object]) -> Any:
    """The value of sample.classes of samples with that sample.json; None if there is none."""
    sample = how.get("config")
    for key in ("sample", "classes"):
        sample = sample.get(key) if isinstance(sample, Mapping) else None
    return sample


def fewest(inputs: Inputs, real: ImageSet) -> int:
    """Images on the smaller side of the metrics that compare all samples."""
    return min(num_held(len(inputs.images)), num_held(len(real)))


def notes_on_counts(inputs: Inputs, settings: Settings, num: int) -> Iterator[str]:
    """Notes if fewer images are compared than there are, or than kid_subset_size.

    `num`: images on each side of the bracket.
    """
    # Capped number of features
    num_samples, size = len(inputs.images), settings.kid_subset_size
    if num_samples > num_held(num_samples) and OF_FEATURES & set(settings.metrics):
        yield (
            f"kernel distance, Monge distance, precision and recall compare "
            f"{num_held(num_samples):,} of the {num_samples:,} samples: no more features are held"
        )
    # Smaller subsets
    if inputs.real is None or "kid" not in settings.metrics:
        return
    least, held = fewest(inputs, inputs.real), num_held(num)
    if least < size:
        yield f"kid_subset_size is {least} instead of {size}: there are no more images"
    elif held < size:
        yield (
            f"the bracket of the kernel distance is by subsets of {held} images instead of {size}: "
            "there are no more on each side"
        )
