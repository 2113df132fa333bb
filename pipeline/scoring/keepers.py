"""Sums over the features of images as they stream by, batch by batch, over all ranks.

Rank r of `world` takes every batch whose number is r modulo `world`, so a batch holds the same
images whatever the number of ranks. The sums are float64, and the ranks add them up. Features
themselves are held only for the rows that a `Held` names.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from pipeline.base.progress import Progress
from pipeline.compute.distributed import Ranks
from pipeline.config.machine_keys import Runtime
from pipeline.reporting.records import Shares

# rows (B,) int64 of a set -> features (B,D) and logits (B,K) or None of its images
FeaturesOf = Callable[[np.ndarray], tuple[Tensor, Tensor | None]]


@dataclass(frozen=True)
class Batch:
    """Features of some images of a set, on the extractor's device."""

    # Which images
    rows: np.ndarray  # (B,) int64: which images of the set
    # What they became
    features: Tensor  # (B,D) float32
    logits: Tensor | None  # (B,K) float32

    def only(self, selection: np.ndarray) -> "Batch":
        """The images for which `selection` (B,) bool is true."""
        mask = torch.from_numpy(selection).to(self.features.device)
        logits = None if self.logits is None else self.logits[mask]
        return Batch(self.rows[selection], self.features[mask], logits)


class Keeper(Protocol):
    """Takes a part of each batch; `finish` then joins the parts of the ranks."""

    def add(self, batch: Batch) -> None:
        """Take one batch."""

    def finish(self, group: Ranks) -> None:
        """Called once by all ranks, after the last batch."""


def batches(num: int, size: int, title: str, seconds: float, group: Ranks) -> Iterator[slice]:
    """This rank's slices of 0 … num-1, of `size` each: every world-th.

    Rank 0 prints a progress line at most every `seconds` seconds, and one at the end.
    """
    # Ranks take turns
    progress = Progress(title, num, seconds)
    stride = size * group.world
    for start in range(0, num, stride):
        first = start + group.rank * size
        if first < num:
            yield slice(first, min(first + size, num))
        # Progress of all ranks
        done = min(start + stride, num)
        if group.first and (done == num or progress.due()):
            progress.show(done)


def stream(
    features_of: FeaturesOf,
    runtime: Runtime,
    group: Ranks,
    title: str,
    rows: np.ndarray,
    keepers: Sequence[Keeper],
) -> None:
    """Show the features of the images `rows` (N,) int64 of a set to all `keepers`."""
    for part in batches(len(rows), runtime.feature_batch, title, runtime.progress_seconds, group):
        features, logits = features_of(rows[part])
        for keeper in keepers:
            keeper.add(Batch(rows[part], features, logits))
    for keeper in keepers:
        keeper.finish(group)


def mask(rows: np.ndarray, total: int) -> np.ndarray:
    """(total,) bool: whether each row of a set is among `rows`."""
    result = np.zeros(total, bool)
    result[rows] = True
    return result


class Only:
    """Shows another keeper the rows for which `selection` (N,) bool is true."""

    def __init__(self, selection: np.ndarray, keeper: Keeper) -> None:
        self.wanted, self.keeper = selection, keeper

    def add(self, batch: Batch) -> None:
        """Pass on a part of the batch."""
        self.keeper.add(batch.only(self.wanted[batch.rows]))

    def finish(self, group: Ranks) -> None:
        """Finish the other keeper."""
        self.keeper.finish(group)


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

    def add(self, batch: Batch) -> None:
        """Add the features of a batch."""
        self.update(batch.features)

    def finish(self, group: Ranks) -> None:
        """Add the sums of all ranks."""
        self.num = int(group.sum(torch.tensor(self.num)))
        self.total = group.sum(self.total)
        self.outer = group.sum(self.outer)

    def include(self, moments: "Moments") -> None:
        """Add the sums of another part of the set; both are finished."""
        self.num += moments.num
        self.total += moments.total
        self.outer += moments.outer

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


class Held:
    """The features themselves of the rows for which `selection` (N,) bool is true."""

    def __init__(self, selection: np.ndarray, width: int) -> None:
        self.wanted = selection
        self.rows = [np.empty(0, np.int64)]
        self.parts = [torch.empty(0, width)]

    def add(self, batch: Batch) -> None:
        """Keep the wanted features, on the CPU."""
        part = batch.only(self.wanted[batch.rows])
        self.rows.append(part.rows)
        self.parts.append(part.features.float().cpu())

    def finish(self, group: Ranks) -> None:
        """On rank 0, put the features of all ranks in the order of their rows."""
        # From every rank
        rows = group.gather(torch.from_numpy(np.concatenate(self.rows)))
        parts = group.gather(torch.cat(self.parts))
        self.parts = self.parts[:1]
        if not group.first:
            return
        # Each row at its place among the wanted ones
        place = torch.from_numpy(np.cumsum(self.wanted) - 1)
        features = torch.empty(int(self.wanted.sum()), parts[0].shape[1])
        for rows_of_rank, part in zip(rows, parts, strict=True):
            features[place[rows_of_rank]] = part
        self.parts = [features]

    @property
    def features(self) -> Tensor:
        """(n,D) float32 on the CPU in the order of the rows; on rank 0, once finished."""
        return self.parts[0]


class ClassMeans:
    """Mean features of each class; `labels` (N,) int64 in 0 … num_classes-1 of all rows."""

    def __init__(
        self, labels: np.ndarray, num_classes: int, width: int, device: torch.device | str
    ) -> None:
        self.labels = torch.from_numpy(np.array(labels))
        self.counts = torch.bincount(torch.empty(0, dtype=torch.int64), minlength=num_classes)
        self.total = torch.zeros(num_classes, width, dtype=torch.float64, device=device)

    def add(self, batch: Batch) -> None:
        """Add each image to the sum of its class."""
        labels = self.labels[batch.rows]
        self.counts += torch.bincount(labels, minlength=len(self.counts))
        self.total.index_add_(0, labels.to(self.total.device), batch.features.double())

    def finish(self, group: Ranks) -> None:
        """Add the sums of all ranks."""
        self.counts, self.total = group.sum(self.counts), group.sum(self.total)

    @property
    def means(self) -> Tensor:
        """(num_classes,D) float64; every class needs an image."""
        return self.total / self.counts.unsqueeze(1).to(self.total.device)


class Hits:
    """Number of images of each class that are nearest (Euclidean) to the mean of their class."""

    def __init__(self, labels: np.ndarray, means: Tensor) -> None:
        self.labels, self.means = torch.from_numpy(np.array(labels)), means
        self.counts = torch.zeros(2, len(means), dtype=torch.int64)  # all images, those that hit

    def add(self, batch: Batch) -> None:
        """Count a batch."""
        labels = self.labels[batch.rows]
        hits = torch.cdist(batch.features.double(), self.means).argmin(1).cpu() == labels
        for count, counted in zip(self.counts, (labels, labels[hits]), strict=True):
            count += torch.bincount(counted, minlength=len(count))

    def finish(self, group: Ranks) -> None:
        """Add the counts of all ranks."""
        self.counts = group.sum(self.counts)

    def shares(self) -> Shares:
        """Shares of the images that hit; of a class without images None."""
        counts, right = self.counts.tolist()
        per_class = [r / c if c else None for r, c in zip(right, counts, strict=True)]
        return Shares(overall=sum(right) / sum(counts), per_class=per_class)


class InceptionScore:
    """Sums from which the Inception score (Salimans et al. 2016) of a set follows.

    The splits are those of torch-fidelity 0.4.0: consecutive parts of a permutation drawn from the
    seed, so each row's split is known before its logits are.
    """

    def __init__(
        self, num: int, width: int, splits: int, seed: int, device: torch.device | str
    ) -> None:
        """`num` images in all, at least `splits`; `width` logits each."""
        # The split of each row
        bounds = np.arange(1, splits) * num // splits
        split = np.searchsorted(bounds, np.arange(num), side="right")
        self.split = np.empty(num, np.int64)
        self.split[np.random.RandomState(seed).permutation(num)] = split
        # Sums of each split
        self.counts = torch.from_numpy(np.bincount(split, minlength=splits)).double()
        self.total = torch.zeros(splits, width, dtype=torch.float64, device=device)  # sum of p
        self.negative = torch.zeros(splits, dtype=torch.float64, device=device)  # sum of p ln p

    def add(self, batch: Batch) -> None:
        """Add the softmax of a batch's logits to the sums of its splits."""
        assert batch.logits is not None
        split = torch.from_numpy(self.split[batch.rows]).to(self.total.device)
        p = batch.logits.double().softmax(1)
        self.total.index_add_(0, split, p)
        log = batch.logits.double().log_softmax(1)
        self.negative.index_add_(0, split, (p * log).sum(1))

    def finish(self, group: Ranks) -> None:
        """Add the sums of all ranks."""
        self.total, self.negative = group.sum(self.total), group.sum(self.negative)

    def score(self) -> tuple[float, float]:
        """Mean and standard deviation over the splits."""
        mean = self.total.cpu() / self.counts.unsqueeze(1)
        entropy = torch.special.xlogy(mean, mean).sum(1)
        scores = (self.negative.cpu() / self.counts - entropy).exp()
        return float(scores.mean()), float(scores.std(correction=0))
