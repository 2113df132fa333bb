"""Scores of images from their features: streamed moments, distances, and accuracy by class means.

Features are (N,D) float32 tensors. The distances are those of torch-fidelity 0.4.0; moments are
float64 sums, so that 1.3 million images need no more memory than a hundred.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import UserError
from pipeline.extractors import Extractor
from pipeline.files import atomic_stream
from pipeline.keys import Evaluate as Settings
from pipeline.torchvision_cpu import torch_fidelity

FULL_FID = 50_000  # samples of the published protocol; with fewer, the label says how many

# Name and label of a score in the features of FID's network, and of any other.
NAMES = {
    "fid": ("fid", "FID", "frechet", "Fréchet distance"),
    "kid": ("kid", "KID", "kid", "Kernel distance"),
    "isc": ("inception_score", "Inception score", "inception_score", "Inception score"),
    "precision": ("precision", "Precision", "precision", "Precision"),
    "recall": ("recall", "Recall", "recall", "Recall"),
}

Entry = dict[str, Any]  # one object of the result


# --- moments -----------------------------------------------------------------------------------


class Moments:
    """Float64 sums of features (D): n, sum of x, sum of x x^T. Sums over parts of a set add up."""

    def __init__(self, width: int, device: torch.device | str = "cpu") -> None:
        self.num = 0
        self.total = torch.zeros(width, dtype=torch.float64, device=device)
        self.outer = torch.zeros(width, width, dtype=torch.float64, device=device)

    def update(self, features: Tensor) -> None:
        """Add features (B,D), B >= 0."""
        x = features.to(self.total)
        self.num += len(x)
        self.total += x.sum(0)
        self.outer.addmm_(x.T, x)

    @property
    def mu(self) -> np.ndarray:
        """Mean (D), float64; needs one image."""
        return (self.total / self.num).cpu().numpy()

    @property
    def sigma(self) -> np.ndarray:
        """Covariance (D,D), float64, normalised by n - 1; needs two images."""
        mean = self.total / self.num
        centred = self.outer - self.num * torch.outer(mean, mean)
        return (centred / (self.num - 1)).cpu().numpy()


def moments_of(features: Tensor) -> Moments:
    """The moments of features (N,D), summed in blocks to bound the float64 copy."""
    moments = Moments(features.shape[1], features.device)
    for block in features.split(4096):
        moments.update(block)
    return moments


@dataclass(frozen=True)
class Reference:
    """Feature statistics of one pack by one extractor: the content of a reference file."""

    mu: np.ndarray  # (D) float64
    sigma: np.ndarray  # (D,D) float64
    num_images: int
    pack_sha256: str  # of the pack's images
    extractor: str
    weights_sha256: str  # of the extractor's weights file


def save_reference(path: Path, reference: Reference) -> None:
    """Write a reference as .npz, atomically."""
    with atomic_stream(path) as stream:
        np.savez(stream, **vars(reference))


def load_reference(path: Path) -> Reference:
    """The reference in `path`; raises UserError where it is missing or damaged."""
    try:
        with np.load(path, allow_pickle=False) as data:
            texts = [str(data[k]) for k in ("pack_sha256", "extractor", "weights_sha256")]
            return Reference(data["mu"], data["sigma"], int(data["num_images"]), *texts)
    except FileNotFoundError as error:
        raise UserError(
            f"reference {path} is missing: run `python -m pipeline.reference` with the same config"
        ) from error
    except (ValueError, KeyError, OSError, EOFError, TypeError, BadZipFile) as error:
        raise UserError(f"reference {path} is damaged: delete it and make it again") from error


# --- pure scores -------------------------------------------------------------------------------


def frechet(mu1: np.ndarray, sigma1: np.ndarray, mu2: np.ndarray, sigma2: np.ndarray) -> float:
    """Fréchet distance of two Gaussians (Heusel et al. 2017, eq. 6), from float64 moments.

    Of equal sets it may come out slightly below zero.
    """
    one, two = {"mu": mu1, "sigma": sigma1}, {"mu": mu2, "sigma": sigma2}
    scores = torch_fidelity.metric_fid.fid_statistics_to_metric(one, two, False)
    return float(scores[torch_fidelity.KEY_METRIC_FID])


def kernel_distance(
    one: Tensor, two: Tensor, subsets: int, subset_size: int, seed: int
) -> tuple[float, float]:
    """Mean and standard deviation of the cubic-kernel MMD^2 over `subsets` random subsets (KID).

    Binkowski et al. 2018. `subset_size` is at least 2 and at most the size of the smaller set.
    """
    scores = torch_fidelity.metric_kid.kid_features_to_metric(
        one, two, kid_subsets=subsets, kid_subset_size=subset_size, rng_seed=seed, verbose=False
    )
    mean = scores[torch_fidelity.KEY_METRIC_KID_MEAN]
    return float(mean), float(scores[torch_fidelity.KEY_METRIC_KID_STD])


def precision_recall(made: Tensor, real: Tensor, neighbourhood: int) -> tuple[float, float]:
    """Improved precision and recall (Kynkäänniemi et al. 2019) of made images against real ones.

    Precision: share of made images inside the ball of some real image, to its k-th neighbour;
    recall: the reverse. Each set must hold more than `neighbourhood` images.
    """
    scores = torch_fidelity.metric_prc.prc_features_to_metric(
        made, real, prc_neighborhood=neighbourhood, save_cpu_ram=True, verbose=False
    )
    precision = scores[torch_fidelity.KEY_METRIC_PRECISION]
    return float(precision), float(scores[torch_fidelity.KEY_METRIC_RECALL])


def inception_score(logits: Tensor, splits: int, seed: int) -> tuple[float, float]:
    """Inception score (Salimans et al. 2016): mean and standard deviation over `splits` parts.

    `logits` (N,K) of the Inception network without bias; N >= splits.
    """
    scores = torch_fidelity.metric_isc.isc_features_to_metric(logits, splits, True, seed)
    mean = scores[torch_fidelity.KEY_METRIC_ISC_MEAN]
    return float(mean), float(scores[torch_fidelity.KEY_METRIC_ISC_STD])


def class_accuracy(
    real: Tensor, real_labels: Tensor, features: Tensor, labels: Tensor, num_classes: int
) -> Entry:
    """Share of images whose nearest class mean (Euclidean) of the real images is their own class.

    Labels are int64 in 0 … num_classes-1; every class must occur in `real_labels`. Returns
    `overall` and `per_class` (null for a class without images), in [0,1].
    """
    one_hot = torch.nn.functional.one_hot(real_labels, num_classes).double()
    means = (one_hot.T @ real.double()) / one_hot.sum(0).unsqueeze(1)
    hits = torch.cdist(features.double(), means).argmin(1) == labels
    counts = torch.bincount(labels, minlength=num_classes)
    right = torch.bincount(labels[hits], minlength=num_classes)
    shares = [int(r) / int(c) if c else None for r, c in zip(right, counts, strict=True)]
    return {"overall": float(hits.double().mean()), "per_class": shares}


# --- scores of one set of samples --------------------------------------------------------------


@dataclass(frozen=True)
class Sides:
    """Features float32 on CPU: of all N samples, and of n images on each side of the bracket."""

    samples: Tensor  # (N,D)
    logits: Tensor | None  # (N,K) of the samples
    chosen: Tensor  # (n,D): the samples, or n random ones of them
    real_a: Tensor  # (n,D)
    real_b: Tensor  # (n,D), no image of real_a
    labels_a: Tensor  # (n) int64
    labels_b: Tensor  # (n) int64
    noise: Tensor  # (n,D)


def all_scores(
    sides: Sides, extractor: Extractor, settings: Settings, reference: Reference
) -> list[Entry]:
    """The scores that evaluate.metrics names, in that order; `isc` only where there are logits."""
    result = []
    for metric in dict.fromkeys(settings.metrics):
        if metric == "fid":
            result.append(fid_entry(sides, extractor, reference))
        elif metric == "kid":
            result.append(kid_entry(sides, extractor, settings))
        elif metric == "prc":
            result += prc_entries(sides, extractor, settings)
        elif sides.logits is not None:
            value, std = inception_score(sides.logits, settings.isc_splits, settings.seed)
            result.append(entry("isc", extractor, value, len(sides.logits), "higher", std=std))
    return result


def entry(
    kind: str, extractor: Extractor, value: float, num: int, better: str, **more: Any
) -> Entry:
    """One score of `num` samples, named after the metric and the extractor."""
    name, label, other_name, other_label = NAMES[kind]
    if extractor.label:
        name, label = f"{other_name}_{extractor.label}", f"{other_label}, {extractor.title}"
    else:
        count = f"{num / 1000:g}k" if num >= 1000 else str(num)
        label += f"-{count}" if kind == "fid" and num < FULL_FID else ""
        label += f" ({extractor.title})"
    found = {"value": value, "num_images": num, "better": better, **more}
    return {"name": name, "label": label, **found}


def fid_entry(sides: Sides, extractor: Extractor, reference: Reference) -> Entry:
    """Fréchet distance of all samples to the whole reference, with its bracket."""
    made, real = moments_of(sides.samples), moments_of(sides.real_b)
    value = frechet(made.mu, made.sigma, reference.mu, reference.sigma)
    others = [moments_of(side) for side in (sides.real_a, sides.chosen, sides.noise)]
    found = [frechet(m.mu, m.sigma, real.mu, real.sigma) for m in others]
    near = bracket(real.num, *found)
    return entry("fid", extractor, value, made.num, "lower", bracket=near)


def kid_entry(sides: Sides, extractor: Extractor, settings: Settings) -> Entry:
    """Kernel distance of the n samples to part B, with its bracket."""
    num = len(sides.real_b)
    size = min(settings.kid_subset_size, num)
    (floor, _), (value, std), (ceiling, _) = (
        kernel_distance(side, sides.real_b, settings.kid_subsets, size, settings.seed)
        for side in (sides.real_a, sides.chosen, sides.noise)
    )
    found = bracket(num, floor, value, ceiling)
    return entry("kid", extractor, value, num, "lower", std=std, bracket=found)


def bracket(num: int, floor: float, value: float, ceiling: float) -> Entry:
    """Distances to part B at `num` images a side: of part A, of the samples, of noise."""
    return {"num_images": num, "floor": floor, "value": value, "ceiling": ceiling}


def prc_entries(sides: Sides, extractor: Extractor, settings: Settings) -> list[Entry]:
    """Precision and recall of the n samples against part B."""
    made, real = sides.chosen.to(extractor.device), sides.real_b.to(extractor.device)
    precision, recall = precision_recall(made, real, settings.prc_neighbourhood)
    return [
        entry("precision", extractor, precision, len(made), "higher"),
        entry("recall", extractor, recall, len(made), "higher"),
    ]
