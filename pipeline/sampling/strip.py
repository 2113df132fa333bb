"""The denoising strip: how a few images come out of their noise, one row an image."""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.base.text import shorten
from pipeline.config.schema import Sample
from pipeline.drawing.tiles import NAME_LENGTH, NO_CLASS, Panel, panel_line, save_picture, stacked
from pipeline.sampling import solvers, time_grids

ROWS = 8  # images
COLUMNS = 9  # times, at most
CELL = 64  # px, at least: a heading fits above it


def sections(sample: Sample) -> list[Tensor]:
    """The sampler's grid in at most COLUMNS-1 slices of about equal length, sharing their ends.

    An adaptive integrator has no grid: it is stopped at equal distances.
    """
    grid = time_grids.times(sample)
    wanted = torch.linspace(float(grid[0]), 1, COLUMNS, dtype=torch.float64)
    if sample.solver == "dopri5":
        grid = wanted
    nearest = (grid - wanted[:, None]).abs().argmin(dim=1)
    ends = nearest.unique(sorted=True).tolist()
    return [grid[first : end + 1] for first, end in pairwise(ends)]


def states(sample: Sample, velocity: solvers.Velocity, x: Tensor) -> Iterator[tuple[float, Tensor]]:
    """Time and state (B,C,H,W) at the ends of all sections, from the first state x on.

    With a fixed grid these are the states of one pass over all of it.
    """
    parts = sections(sample)
    yield float(parts[0][0]), x
    for part in parts:
        x = solvers.solve(sample.solver, velocity, x, part, sample.rtol, sample.atol).x
        yield float(part[-1]), x


def heading(time: float) -> str:
    """A time as it stands above its column: t=0, t=0.125, t=0.9995."""
    return f"t={round(time, 4):g}"


def row_names(labels: np.ndarray, classes: Sequence[str] | None) -> list[str]:
    """The names of rows of classes `labels` (B,); `classes` None: images without classes."""
    if classes is None:
        return [NO_CLASS] * len(labels)
    return [shorten(classes[label], NAME_LENGTH) for label in labels]


def save_strip(
    path: Path, times: Sequence[float], states: np.ndarray, names: Sequence[str]
) -> None:
    """Write a PNG atomically: a column for each of T times, of states uint8 (T,B,H,W,3).

    `names` (B,) are those of the rows. Pixels are repeated so that a cell has at least CELL px.
    """
    rows = np.arange(len(names))
    panels = [Panel(heading(t), images, rows) for t, images in zip(times, states, strict=True)]
    scale = math.ceil(CELL / states.shape[3])
    save_picture(path, stacked([panel_line(panels, names, rows.tolist(), 1, scale)]))
