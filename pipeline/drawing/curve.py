"""The chart of a training curve."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from pipeline.base.text import short_number
from pipeline.drawing.charts import BAD, GOOD, INK, PALE, plain_log, png

SMOOTHING = 0.025  # share of the rows on each side in the mean that smooths a curve
LEVELS = (GOOD, BAD)  # colours


class Curve(Protocol):
    """A row of a training curve: means over some steps."""

    @property
    def images(self) -> int: ...  # seen so far
    @property
    def loss(self) -> float: ...
    @property
    def grad_norm(self) -> float: ...
    @property
    def images_per_s(self) -> float: ...


def smooth(values: np.ndarray, reach: int) -> np.ndarray:
    """Means of values (N,) over up to `reach` neighbours on each side.

    Near the steep start as many on the right as on the left; near the flat end as many as exist.
    """
    place = np.arange(len(values))
    first = np.maximum(place - reach, 0)
    end = np.minimum(place + np.minimum(place, reach), len(values) - 1) + 1
    sums = np.concatenate([[0.0], np.cumsum(values)])
    means: np.ndarray = (sums[end] - sums[first]) / (end - first)
    return means


def curve_chart(
    title: str,
    rows: Sequence[Curve],
    epoch: int,
    items: str = "images",
    levels: Mapping[str, float] | None = None,
) -> bytes:
    """PNG of loss, gradient norm and speed over items seen; `epoch` is the size of the pack.

    Pale: each row; dark: the mean over its neighbours; dashed: named `levels` of the loss.
    """
    figure = Figure(figsize=(9, 8), layout="constrained")
    axes = figure.subplots(3, sharex=True, height_ratios=(2, 1, 1))
    # a panel per column
    names = {"loss": "loss", "grad_norm": "gradient norm", "images_per_s": f"{items} per second"}
    images = np.array([row.images for row in rows])
    for axis, (key, name) in zip(axes, names.items(), strict=True):
        values = np.array([getattr(row, key) for row in rows], dtype=float)
        marker = "." if len(rows) < 60 else ""
        axis.plot(images, values, color=PALE, marker=marker, label="one row of the curve")
        mean = smooth(values, round(SMOOTHING * len(rows)))
        axis.plot(images, mean, color=INK, linewidth=2, label="mean over 5% of the rows")
        if key != "images_per_s" and 0 < 4 * values.min() < values.max():
            plain_log(axis, "y", values.min(), values.max())
        axis.set_ylabel(name)
        axis.grid(alpha=0.25)
    for place, (name, level) in enumerate((levels or {}).items()):
        colour = LEVELS[place % len(LEVELS)]
        axes[0].axhline(level, color=colour, linestyle="--", linewidth=1.2, label=name)
    # scales: items below, epochs above
    axes[2].set_ylim(bottom=0)
    axes[2].yaxis.set_major_formatter(FuncFormatter(short_number))
    axes[2].xaxis.set_major_formatter(FuncFormatter(short_number))
    axes[2].set_xlabel(f"{items} seen")
    top = axes[0].secondary_xaxis("top", functions=(lambda x: x / epoch, lambda x: x * epoch))
    top.set_xlabel("epochs")
    axes[0].set_title(title)
    axes[0].legend()
    return png(figure)
