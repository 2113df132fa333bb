"""Which noise goes with which image: any, the nearest within groups (optimal transport), or the
best image of all for the noise (semidiscrete: transport.py).

In groups: if the network knows classes, only images of one class of a group exchange their noise.
Sampling draws the noise without looking at the class, so the noise of every class must stay
standard normal; images of all classes together would give the bright class the bright noise.

A group is so many consecutive positions of the run, n // size = constant; the batch is a multiple
of it, so no group lies in two steps. A rank whose micro-batch cuts through a group draws the whole
group, solves it as the other ranks do, and keeps its own part: the pairs are a pure function of
(seed, position). Micro-batches that are multiples of the group draw nothing twice.
"""

import numpy as np
from torch import Tensor

from pipeline.compute import draws
from pipeline.config.schema import Config
from pipeline.data.reader import Reader, load_batch, moved, to_float
from pipeline.flow.transport import Transport

DECIMALS = 6  # of a cost: far above the rounding of its sum, far below what tells two apart
ENOUGH = 0.5  # share of the images that should meet another of their class in a group


def whole_groups(positions: np.ndarray, size: int) -> np.ndarray:
    """All positions, in order, of the groups of `size` that `positions` (B,) int64 touch."""
    groups = np.unique(positions // size)
    return (groups[:, None] * size + np.arange(size)).ravel()


def assign(x0: Tensor, x1: Tensor) -> np.ndarray:
    """Row of x0 for each row of x1, both (G,3,H,W), so that the sum of |x0 - x1|² is least.

    Exact (linear_sum_assignment). Of |x0 - x1|² only -2 x0·x1 depends on the pairing, so the sum
    of the products is made greatest: in float64 on the CPU, and rounded, so that equal images stay
    equal and the order of a sum over pixels (number of threads) decides nothing. Waits for a GPU.
    """
    from scipy.optimize import linear_sum_assignment  # half a second, which other couplings save

    noises, images = (x.cpu().double().flatten(1).numpy() for x in (x0, x1))
    rows, columns = linear_sum_assignment((images @ noises.T).round(DECIMALS), maximize=True)
    return columns[np.argsort(rows)]


def assign_within(x0: Tensor, x1: Tensor, cells: np.ndarray) -> np.ndarray:
    """`assign` among the rows of x0, x1 (B,3,H,W) of the same cell, of `cells` (B,) int64."""
    x0, x1 = x0.cpu(), x1.cpu()
    partners = np.arange(len(cells))
    for rows in (np.flatnonzero(cells == cell) for cell in np.unique(cells)):
        if len(rows) > 1:
            partners[rows] = rows[assign(x0[rows], x1[rows])]
    return partners


def share_with_partner(labels: np.ndarray, size: int) -> float:
    """Share in [0,1] of the images, of classes `labels` (N,), that are expected to have another
    image of their class among `size` images drawn at random.
    """
    shares = np.unique(labels, return_counts=True)[1] / len(labels)
    return float((shares * (1 - (1 - shares) ** (size - 1))).sum())


def small_groups_note(config: Config, labels: np.ndarray) -> str:
    """A sentence if most images, of classes `labels` (N,), keep any noise; empty otherwise."""
    if not config.pairs_within_classes:
        return ""
    size = config.train.coupling_images
    share = share_with_partner(labels, size)
    if share >= ENOUGH:
        return ""
    return (
        "train.coupling=optimal_transport pairs noise and images within a class, and in groups of "
        f"train.coupling_images={size} only {share:.0%} of the images meet another of their class: "
        "the others keep independent noise; larger groups, up to train.batch, pair more"
    )


def transport(reader: Reader, config: Config) -> Transport | None:
    """The map of train.coupling=semidiscrete on an open pack, made once; None of the others."""
    if config.train.coupling != "semidiscrete":
        return None
    return Transport(reader, config.model.class_conditional, config.train.flip)


def noise_at(config: Config, positions: np.ndarray, reader: Reader) -> Tensor:
    """The noise (B,3,H,W) float32 of `positions` (B,) of the run."""
    size, index = reader.pack.record.resolution, moved(positions, reader.device)
    return draws.normal(config.train.seed, draws.TRAIN_NOISE, index, (3, size, size))


def pairs(
    reader: Reader, config: Config, positions: np.ndarray, by_duals: Transport | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Noise x0 and images x1 (B,3,H,W) float32, labels (B,) int64, at `positions` (B,) of the run.

    By `transport` the noise stays and the image is chosen. Otherwise images and labels are those of
    their positions; the noise moves within its group, and within the class if the network knows
    classes.
    """
    # The best image
    if by_duals is not None:
        x0 = noise_at(config, positions, reader)
        pixels, labels = by_duals.images(positions, x0)
        return x0, to_float(pixels), labels

    # all that the positions and their groups draw
    train = config.train
    # Images and labels
    grouped = train.coupling == "optimal_transport"
    drawn = whole_groups(positions, train.coupling_images) if grouped else positions
    x1, labels = load_batch(reader, drawn, train.flip)
    x0 = noise_at(config, drawn, reader)

    # Independent noise
    if not grouped:
        return x0, x1, labels

    # the nearest noise within the group, or the class in it
    cells = drawn // train.coupling_images
    if config.pairs_within_classes:
        cells = cells * len(reader.pack.record.classes) + labels.cpu().numpy()

    # Partners in the group
    places = np.searchsorted(drawn, positions)
    partners = assign_within(x0, x1, cells)[places]
    rows = moved(places, reader.device)
    return x0[moved(partners, reader.device)], x1[rows], labels[rows]
