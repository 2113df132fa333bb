"""The features of all images of an evaluation, streamed once each over all ranks.

The bracket compares equal numbers n of images: two disjoint random parts A and B of the real
images, the samples, and uniform noise. Part B comes first, since its class means judge the images
that follow.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.compute.distributed import Ranks
from pipeline.config.schema import Config
from pipeline.scoring.extractors import LOGITS, Extractor
from pipeline.scoring.image_sets import ImageSet
from pipeline.scoring.inputs import Inputs
from pipeline.scoring.keepers import (
    ClassMeans,
    FeaturesOf,
    Held,
    Hits,
    InceptionScore,
    Keeper,
    Moments,
    Only,
    mask,
    stream,
)
from pipeline.scoring.kept_features import HELD, SEED, draw, noise_images
from pipeline.scoring.neighbours import NEAREST, REAL, Nearest, Neighbours, queries
from pipeline.scoring.references import Reference
from pipeline.scoring.scores import (
    OF_FEATURES,
    OF_NOISE,
    OF_SETS,
    Measured,
    Side,
    Sides,
    WholeSets,
)
from pipeline.scoring.whole_sets import RealSet, num_held


class Accuracy(NamedTuple):
    """Hits of the class means of part B on the samples and on part A."""

    samples: Hits
    real: Hits


class Result(NamedTuple):
    """Everything to be scored: accuracy if the classes allow it, neighbours with real images."""

    measured: Measured
    accuracy: Accuracy | None
    neighbours: Neighbours | None


class Parts(NamedTuple):
    """Rows of the bracket, n each in random order: of the samples and of the real images."""

    chosen: np.ndarray
    a: np.ndarray
    b: np.ndarray


@dataclass(frozen=True)
class Work:
    """The things that every pass over images needs."""

    # What is compared
    inputs: Inputs
    extractor: Extractor
    # How and where
    config: Config
    group: Ranks

    def show(
        self, title: str, rows: np.ndarray, features_of: FeaturesOf, *keepers: Keeper | None
    ) -> None:
        """Show the features of the images `rows` to the keepers that are not None."""
        needed = [keeper for keeper in keepers if keeper is not None]
        stream(features_of, self.config.runtime, self.group, title, rows, needed)

    def features(self, rows: np.ndarray, features_of: FeaturesOf) -> Tensor:
        """Features (Q,D) of a few images, by every rank for itself."""
        size = self.config.runtime.feature_batch
        parts = [rows[start : start + size] for start in range(0, len(rows), size)]
        return torch.cat([features_of(part)[0] for part in parts])

    def of_samples(self) -> FeaturesOf:
        """Features of the samples."""
        return self.extractor.of(self.inputs.images.read)

    def of_real(self, real: ImageSet) -> FeaturesOf:
        """Features of real images, from the reference if it keeps them."""
        compute, kept = self.extractor.of(real.read), self.inputs.kept
        return kept.real.before(compute, self.extractor.device) if kept else compute

    def of_noise(self) -> FeaturesOf:
        """Features of uniform noise, from the reference if it keeps them."""
        size, seed = self.inputs.images.size, self.config.evaluate.seed
        compute = self.extractor.of(lambda rows: noise_images(rows, size, seed))
        kept = self.inputs.kept if seed == SEED else None
        return kept.noise.before(compute, self.extractor.device) if kept else compute

    def moments(self) -> Moments:
        """Empty moments."""
        return Moments(self.extractor.width, self.extractor.device)

    def side(self, rows: np.ndarray, total: int, scores: set[str]) -> Side:
        """An empty side of the bracket: `rows` of a set of `total` images, in random order.

        Features are held if evaluate.metrics names one of `scores`.
        """
        held = Held(mask(rows[:HELD], total), self.extractor.width)
        metrics = scores & set(self.config.evaluate.metrics)
        return Side(self.moments(), held if metrics else None)

    def real_set(self, parts: Parts, total: int) -> RealSet | None:
        """The empty set of real images for all samples; None if no metric is asked for."""
        settings = self.config.evaluate
        if not OF_SETS & set(settings.metrics):
            return None
        return RealSet(parts.a, parts.b, total, self.extractor.width, settings.seed)

    def inception(self) -> InceptionScore | None:
        """An empty Inception score of the samples; None if it is not asked for or possible."""
        settings = self.config.evaluate
        if "isc" not in settings.metrics or not self.extractor.has_logits:
            return None
        num, device = len(self.inputs.images), self.extractor.device
        return InceptionScore(num, LOGITS, settings.isc_splits, settings.seed, device)


def split(num_samples: int, num_real: int, seed: int) -> Parts:
    """As many images on each side of the bracket as there can be."""
    num = min(num_samples, num_real // 2)
    rows = draw(2 * num, num_real, seed)
    return Parts(draw(num, num_samples, seed), rows[:num], rows[num:])


def why_no_accuracy(inputs: Inputs, parts: Parts | None) -> str:
    """Why there is no class accuracy: labels are missing or a class does not occur; else empty."""
    # Labels are missing
    if inputs.labels is None or inputs.real_labels is None or parts is None:
        whose = "samples" if inputs.labels is None else "real images"
        return f"class accuracy is left out: the {whose} have no labels"

    # Classes are missing
    sides = {
        "real images of part B": inputs.real_labels[parts.b],
        "samples": inputs.labels,
    }
    num = len(inputs.classes)
    for name, labels in sides.items():
        if missing := num - len(np.unique(labels)):
            why = f"{missing} of {num} classes do not occur in the {len(labels):,} {name}"
            return f"class accuracy is left out: {why}"
    return ""


def measure(work: Work, parts: Parts | None, classes: bool) -> Result:
    """Every feature that the scores need; the result is whole on rank 0.

    `parts` is None without real images; `classes`: whether there can be an accuracy.
    """
    # Only statistics to compare
    if parts is None or work.inputs.real is None:
        everything, inception = work.moments(), work.inception()
        rows = np.arange(len(work.inputs.images))
        work.show("samples", rows, work.of_samples(), everything, inception)
        reference = work.inputs.reference
        assert reference is not None
        return Result(Measured(everything, reference, None, inception), None, None)
    # With real images
    return measure_bracket(work, work.inputs.real, parts, classes)


def measure_bracket(work: Work, real: ImageSet, parts: Parts, classes: bool) -> Result:
    """Every feature that the scores, the bracket and the accuracy against `real` need."""
    # Empty sums of both parts
    inputs, total, of_real = work.inputs, len(real), work.of_real(real)
    rows_a, rows_b = np.sort(parts.a), np.sort(parts.b)  # sorted: read from the disk in order
    side_a = work.side(parts.a, total, OF_FEATURES)
    side_b = work.side(parts.b, total, OF_FEATURES)
    means = class_means(work) if classes else None
    search, real_set = Search(work, real, rows_a), work.real_set(parts, total)
    in_b, in_a = (real_set.in_b, real_set.in_a) if real_set else (None, None)

    # Real images
    near_b = (search.near_b, search.near_real)
    work.show("real images, part B", rows_b, of_real, *side_b.keepers, in_b, means, *near_b)
    hits_a = hits_of(inputs.real_labels, means)
    near_a = search.near_a
    work.show("real images, part A", rows_a, of_real, *side_a.keepers, in_a, hits_a, near_a)
    reference = measure_rest(work, real, parts, (side_a, side_b), real_set)

    # Samples and noise
    hits = hits_of(inputs.labels, means)
    everything, chosen, inception, held = measure_samples(work, parts.chosen, hits)
    noise = measure_noise(work, len(parts.a))

    # Result
    sides = Sides(chosen, side_a, side_b, noise)
    sets = WholeSets(held.features, real_set.features) if held and real_set else None
    accuracy = Accuracy(hits, hits_a) if hits and hits_a else None
    neighbours = search.result() if work.group.first else None
    return Result(Measured(everything, reference, sides, inception, sets), accuracy, neighbours)


def class_means(work: Work) -> ClassMeans:
    """Empty means of the classes of the real images."""
    inputs, extractor = work.inputs, work.extractor
    assert inputs.real_labels is not None
    return ClassMeans(inputs.real_labels, len(inputs.classes), extractor.width, extractor.device)


def hits_of(labels: np.ndarray | None, means: ClassMeans | None) -> Hits | None:
    """Empty counts for images with these labels; None without means to judge them by."""
    return Hits(labels, means.means) if means and labels is not None else None


def measure_rest(
    work: Work, real: ImageSet, parts: Parts, sides: tuple[Side, Side], real_set: RealSet | None
) -> Reference:
    """Show the real images of neither part, as far as they are needed; the statistics of all."""
    # A few for the metrics of features
    reference, title, of_real = work.inputs.reference, "real images, rest", work.of_real(real)
    if reference and real_set and len(real_set.rest):
        work.show(title, real_set.rest, of_real, real_set.in_rest)
    if reference:
        return reference

    # All for the statistics, to which the parts are added
    remainder = np.flatnonzero(~mask(np.concatenate([parts.a, parts.b]), len(real)))
    moments = work.moments()
    work.show(title, remainder, of_real, moments, real_set.in_rest if real_set else None)
    for side in sides:
        moments.include(side.moments)
    return Reference(moments.mu, moments.sigma, moments.num)


def measure_samples(
    work: Work, chosen: np.ndarray, hits: Hits | None
) -> tuple[Moments, Side, InceptionScore | None, Held | None]:
    """Moments of all samples, the side of the chosen ones, the Inception score, and features.

    The features are of all samples, or of HELD of them, if a metric compares them.
    """
    # Empty sums of all and of the chosen ones
    everything, total = work.moments(), len(work.inputs.images)
    side, inception = work.side(chosen, total, OF_FEATURES), work.inception()
    part = Only(mask(chosen, total), side.moments) if len(chosen) < total else None
    # Features
    held, settings = side.held, work.config.evaluate
    if held and len(chosen) < num_held(total):
        held = Held(mask(draw(num_held(total), total, settings.seed), total), work.extractor.width)
    more = held if held is not side.held else None
    # All samples
    keepers = (everything, part, side.held, more, hits, inception)
    work.show("samples", np.arange(total), work.of_samples(), *keepers)
    return everything, side if part else Side(everything, side.held), inception, held


def measure_noise(work: Work, num: int) -> Side:
    """The side of uniform noise; empty if no distance is asked for."""
    rows = np.arange(num)
    side = work.side(rows, num, OF_NOISE)
    if {"fid", *OF_NOISE} & set(work.config.evaluate.metrics):
        work.show("noise", rows, work.of_noise(), *side.keepers)
    return side


class Search:
    """The running search for the neighbours of a few samples, and of a few images of part A."""

    def __init__(self, work: Work, real: ImageSet, rows_a: np.ndarray) -> None:
        inputs = work.inputs
        self.rows, self.num = queries(inputs.labels, len(inputs.images)), len(rows_a)
        self.total = len(real)
        features = work.features(self.rows, work.of_samples())
        self.near_a, self.near_b = Nearest(features, NEAREST), Nearest(features, NEAREST)
        compared = rows_a[np.linspace(0, self.num - 1, min(REAL, self.num)).astype(int)]
        self.near_real = Nearest(work.features(compared, work.of_real(real)), 1)

    def result(self) -> Neighbours:
        """The nearest of both parts, on rank 0 after both have been shown."""
        self.near_a.merge(self.near_b.distances, self.near_b.rows)
        median = float(np.median(self.near_real.distances))
        near = self.near_a
        counts = (2 * self.num, self.total)
        return Neighbours(self.rows, near.rows, near.distances, *counts, median, self.num)
