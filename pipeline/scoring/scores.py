"""Scores of images from their features: distances, and their records in the result.

Features are (N,D) float32 tensors, or moments of any number of them. The distances are those of
torch-fidelity 0.4.0 but for rounding, and MIND that of its 0.5.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from pipeline.config.schema import Evaluate as Settings
from pipeline.reporting.records import Bracket, Score
from pipeline.scoring.extractors import Extractor
from pipeline.scoring.fidelity import load_torch_fidelity
from pipeline.scoring.keepers import Held, InceptionScore, Moments
from pipeline.scoring.mind import monge_distance
from pipeline.scoring.references import Reference

# Numbers of images
FULL_FID = 50_000  # samples of the published protocol; with fewer, the label says how many

# Metrics that compare features and not their moments, and those of them that compare with noise
OF_FEATURES = {"kid", "mind", "prc"}
OF_NOISE = {"kid", "mind"}
OF_SETS = {"kid", "prc"}  # those that compare all samples: the others need equal numbers

# Name and label of a score in the features of FID's network, and of any other.
NAMES = {
    "fid": ("fid", "FID", "frechet", "Fréchet distance"),
    "kid": ("kid", "KID", "kid", "Kernel distance"),
    "mind": ("mind", "MIND", "mind", "Monge distance"),
    "isc": ("inception_score", "Inception score", "inception_score", "Inception score"),
    "precision": ("precision", "Precision", "precision", "Precision"),
    "recall": ("recall", "Recall", "recall", "Recall"),
}


# --- pure scores -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Gaussian:
    """Moments with which several others are compared."""

    mu: np.ndarray  # (D) float64
    sigma: np.ndarray  # (D,D) float64, symmetric, no negative eigenvalues but of rounding

    @cached_property
    def root(self) -> np.ndarray:
        """R (D,r) with sigma = R R^T; r is the numerical rank, at least 1."""
        values, vectors = np.linalg.eigh(self.sigma)
        least = values[-1] * len(values) * np.finfo(np.float64).eps
        num = max(1, int((values > least).sum()))
        root: np.ndarray = vectors[:, -num:] * np.sqrt(values[-num:].clip(min=0))
        return root

    def distance(self, mu: np.ndarray, sigma: np.ndarray) -> float:
        """Fréchet distance from a Gaussian of these moments (Heusel et al. 2017, eq. 6).

        The eigenvalues of sigma R R^T, of whose root the formula takes the trace, are those of the
        symmetric R^T sigma R, and zeros. Never below 0, though rounding puts the result for equal
        sets on either side of it.
        """
        values = np.linalg.eigvalsh(self.root.T @ sigma @ self.root)
        root_trace = np.sqrt(values.clip(min=0)).sum()
        squared = np.square(mu - self.mu).sum()
        return max(0.0, float(squared + sigma.trace() + self.sigma.trace() - 2 * root_trace))


def frechet(mu1: np.ndarray, sigma1: np.ndarray, mu2: np.ndarray, sigma2: np.ndarray) -> float:
    """Fréchet distance of two Gaussians, from float64 moments."""
    return Gaussian(mu2, sigma2).distance(mu1, sigma1)


def kernel_distance(
    features_a: Tensor, features_b: Tensor, subsets: int, subset_size: int, seed: int
) -> tuple[float, float]:
    """Mean and standard deviation of the cubic-kernel MMD^2 over `subsets` random subsets (KID).

    Binkowski et al. 2018. `subset_size` is at least 2 and at most the size of the smaller set.
    """
    # By torch-fidelity
    torch_fidelity = load_torch_fidelity()
    scores = torch_fidelity.metric_kid.kid_features_to_metric(
        features_a,
        features_b,
        kid_subsets=subsets,
        kid_subset_size=subset_size,
        rng_seed=seed,
        verbose=False,
    )
    mean = scores[torch_fidelity.KEY_METRIC_KID_MEAN]
    return float(mean), float(scores[torch_fidelity.KEY_METRIC_KID_STD])


def precision_recall(samples: Tensor, real: Tensor, neighbourhood: int) -> tuple[float, float]:
    """Improved precision and recall (Kynkäänniemi et al. 2019) of made images against real ones.

    Precision: share of made images inside the ball of some real image, to its k-th neighbour;
    recall: the reverse. Each set must hold more than `neighbourhood` images.
    """
    torch_fidelity = load_torch_fidelity()
    scores = torch_fidelity.metric_prc.prc_features_to_metric(
        samples, real, prc_neighborhood=neighbourhood, save_cpu_ram=True, verbose=False
    )
    precision = scores[torch_fidelity.KEY_METRIC_PRECISION]
    return float(precision), float(scores[torch_fidelity.KEY_METRIC_RECALL])


# --- scores of one set of samples --------------------------------------------------------------


@dataclass(frozen=True)
class Side:
    """One of the sets of n images of the bracket."""

    # Sums and features
    moments: Moments  # of all n
    held: Held | None  # features of at most HELD of them; None: no score needs features

    @property
    def keepers(self) -> tuple[Moments, Held | None]:
        """Both, to be shown the images."""
        return self.moments, self.held


@dataclass(frozen=True)
class Sides:
    """The sets of the bracket, n images each; no image of part A is in part B."""

    # Images to compare
    chosen: Side  # the samples, or n random ones of them
    # Their bounds
    real_a: Side
    real_b: Side
    noise: Side


class WholeSets(NamedTuple):
    """Features of all samples (N,D) and of the real images (M,D), up to HELD on each side."""

    samples: Tensor
    real: Tensor

    def equal(self, side: Side) -> bool:
        """Whether both have as many images as a side of the bracket, and so are its sides."""
        num = len(features(side))
        return len(self.samples) == num and len(self.real) == num


@dataclass(frozen=True)
class Measured:
    """Sums and features of all images, on rank 0."""

    # Sums of all images
    samples: Moments  # of all samples
    reference: Reference  # of the whole real set
    # Only if possible
    sides: Sides | None  # None: there are no real images, only their statistics
    inception: InceptionScore | None  # of all samples; None: not asked for, or there are no logits
    sets: WholeSets | None = None  # features of all; None: no metric of OF_SETS is possible


def all_scores(measured: Measured, extractor: Extractor, settings: Settings) -> list[Score]:
    """The scores that evaluate.metrics names, in that order, if the inputs allow them.

    `kid`, `mind` and `prc` need real images, `isc` logits.
    """
    # In the user's order
    result: list[Score] = []
    for metric in dict.fromkeys(settings.metrics):
        if metric == "fid":
            result.append(fid_score(measured, extractor))
        elif metric == "kid" and measured.sides and measured.sets:
            result.append(kid_score(measured.sides, measured.sets, extractor, settings))
        elif metric == "mind" and measured.sides:
            result.append(mind_score(measured.sides, extractor, settings))
        elif metric == "prc" and measured.sides and measured.sets:
            result += prc_scores(measured.sides, measured.sets, extractor, settings)
        elif metric == "isc" and measured.inception:
            value, std = measured.inception.score()
            num = measured.samples.num
            result.append(named("isc", extractor, value, num, "higher", std=std))
    return result


def named(
    kind: str, extractor: Extractor, value: float, num: int, better: str, **more: Any
) -> Score:
    """One score of `num` samples, named after the metric and the extractor.

    `more` are further fields of Score.
    """
    # Another network's name
    name, label, other_name, other_label = NAMES[kind]
    if extractor.label:
        name, label = f"{other_name}_{extractor.label}", f"{other_label}, {extractor.title}"
    # Number in the label
    else:
        count = f"{num / 1000:g}k" if num >= 1000 else str(num)
        label += f"-{count}" if kind == "fid" and num < FULL_FID else ""
        label += f" ({extractor.title})"
    return Score(name=name, label=label, value=value, num_images=num, better=better, **more)


def fid_score(measured: Measured, extractor: Extractor) -> Score:
    """Fréchet distance of all samples to the whole reference, with its bracket."""
    # All samples
    samples, reference = measured.samples, measured.reference
    value = frechet(samples.mu, samples.sigma, reference.mu, reference.sigma)
    # Its bracket
    more: dict[str, Bracket] = {}
    if sides := measured.sides:
        part_b = sides.real_b.moments
        num, real = part_b.num, Gaussian(part_b.mu, part_b.sigma)
        floor, near, ceiling = (
            real.distance(side.moments.mu, side.moments.sigma)
            for side in (sides.real_a, sides.chosen, sides.noise)
        )
        more["bracket"] = Bracket(num_images=num, floor=floor, value=near, ceiling=ceiling)
    return named("fid", extractor, value, samples.num, "lower", **more)


def features(side: Side) -> Tensor:
    """The features (n,D) held of one side."""
    assert side.held is not None
    return side.held.features


def kid_score(sides: Sides, sets: WholeSets, extractor: Extractor, settings: Settings) -> Score:
    """Kernel distance of all samples to the real images, with the bracket against part B."""

    # By the same subsets of both
    def distance(first: Tensor, second: Tensor) -> tuple[float, float]:
        size = min(settings.kid_subset_size, len(first), len(second))
        return kernel_distance(first, second, settings.kid_subsets, size, settings.seed)

    value, std = distance(*sets)

    # Its bracket
    real = features(sides.real_b)
    floor, ceiling = (distance(features(side), real)[0] for side in (sides.real_a, sides.noise))
    near = value if sets.equal(sides.real_b) else distance(features(sides.chosen), real)[0]
    bracket = Bracket(num_images=len(real), floor=floor, value=near, ceiling=ceiling)
    return named("kid", extractor, value, len(sets.samples), "lower", std=std, bracket=bracket)


def mind_score(sides: Sides, extractor: Extractor, settings: Settings) -> Score:
    """Monge Inception distance of the n samples to part B, with its bracket."""
    real = features(sides.real_b).to(extractor.device)
    floor, value, ceiling = (
        monge_distance(features(side).to(extractor.device), real, settings.seed)
        for side in (sides.real_a, sides.chosen, sides.noise)
    )
    bracket = Bracket(num_images=len(real), floor=floor, value=value, ceiling=ceiling)
    return named("mind", extractor, value, len(real), "lower", bracket=bracket)


def prc_scores(
    sides: Sides, sets: WholeSets, extractor: Extractor, settings: Settings
) -> list[Score]:
    """Precision and recall of all samples against the real images.

    `real` are those of part A against part B, and `near` those of as many samples.
    """

    # On the device
    def shares(first: Tensor, second: Tensor) -> tuple[float, float]:
        sides_there = first.to(extractor.device), second.to(extractor.device)
        return precision_recall(*sides_there, settings.prc_neighbourhood)

    values = shares(*sets)
    real, num = features(sides.real_b), len(sets.samples)
    bests = shares(features(sides.real_a), real)
    nears = values if sets.equal(sides.real_b) else shares(features(sides.chosen), real)
    # A record for each
    kinds = zip(("precision", "recall"), values, bests, nears, strict=True)
    return [
        named(kind, extractor, value, num, "higher", real=best, near=near, real_num=len(real))
        for kind, value, best, near in kinds
    ]
