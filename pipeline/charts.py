"""The charts of the report: the training curve, and each distance between floor and ceiling."""

import io
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from pipeline.text import number, short_number

SMOOTHING = 0.025  # share of the rows on each side in the mean that smooths a curve
INK, PALE, GOOD, BAD = "#1f4e79", "#a9c4de", "#2a7f3f", "#b03a2e"
MARKS = {  # of a distance: marker, colour, height of its number above the line (points), meaning
    "floor": ("|", GOOD, -18, "floor: other real images"),
    "value": ("o", INK, 9, "samples"),
    "ceiling": ("|", BAD, -18, "ceiling: uniform noise"),
}


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


def png(figure: Figure) -> bytes:
    """A figure as the bytes of a PNG."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110)
    return stream.getvalue()


def plain_log(axis: Axes, which: str, low: float, high: float) -> None:
    """A log scale with plain numbers on axis `which` (x or y) for values from `low` to `high`."""
    many = high / low > 100
    axis.set(**{f"{which}scale": "log"})
    ticks = getattr(axis, f"{which}axis")
    ticks.set_major_locator(LogLocator(subs=(1,) if many else (1, 1.5, 2, 3, 5, 7)))
    ticks.set_major_formatter(FuncFormatter(short_number))
    ticks.set_minor_formatter(NullFormatter())


def curve_chart(title: str, rows: Sequence[Mapping[str, Any]], epoch: int) -> bytes:
    """PNG of loss, gradient norm and speed over images seen; `epoch` is the size of the pack.

    `rows`: the rows of curve.jsonl. Pale: each row; dark: the mean over its neighbours.
    """
    figure = Figure(figsize=(9, 8), layout="constrained")
    axes = figure.subplots(3, sharex=True, height_ratios=(2, 1, 1))
    names = {"loss": "loss", "grad_norm": "gradient norm", "images_per_s": "images per second"}
    images = np.array([row["images"] for row in rows])
    for axis, (key, name) in zip(axes, names.items(), strict=True):
        values = np.array([row[key] for row in rows], dtype=float)
        marker = "." if len(rows) < 60 else ""
        axis.plot(images, values, color=PALE, marker=marker, label="one row of the curve")
        mean = smooth(values, round(SMOOTHING * len(rows)))
        axis.plot(images, mean, color=INK, linewidth=2, label="mean over 5% of the rows")
        if key != "images_per_s" and 0 < 4 * values.min() < values.max():
            plain_log(axis, "y", values.min(), values.max())
        axis.set_ylabel(name)
        axis.grid(alpha=0.25)
    axes[2].set_ylim(bottom=0)
    axes[2].yaxis.set_major_formatter(FuncFormatter(short_number))
    axes[2].xaxis.set_major_formatter(FuncFormatter(short_number))
    axes[2].set_xlabel("images seen")
    top = axes[0].secondary_xaxis("top", functions=(lambda x: x / epoch, lambda x: x * epoch))
    top.set_xlabel("epochs")
    axes[0].set_title(title)
    axes[0].legend()
    return png(figure)


def distance_chart(title: str, scores: Sequence[Mapping[str, Any]]) -> bytes:
    """PNG with one panel a metric and one line a sampler, from floor to ceiling, the value on it.

    Of the `scores` (label, sampler, seed) that have a bracket {num_images, floor, value, ceiling}.
    """
    brackets: dict[str, dict[str, Mapping[str, float]]] = {}  # metric -> sampler -> bracket
    for score in scores:
        if score.get("bracket"):
            sampler = f"{score['sampler']}, seed {score['seed']}"
            brackets.setdefault(score["label"], {})[sampler] = score["bracket"]
    sizes = [len(lines) + 1.0 for lines in brackets.values()] or [1.0]
    figure = Figure(figsize=(9, 0.8 + 0.6 * sum(sizes)), layout="constrained")
    figure.suptitle(title if brackets else f"{title}: no distance has a floor and a ceiling")
    if not brackets:
        return png(figure)
    panels = figure.subplots(len(brackets), height_ratios=sizes, squeeze=False)[:, 0]
    for axis, (name, lines) in zip(panels, brackets.items(), strict=True):
        draw_brackets(axis, lines)
        num = " or ".join(sorted({f"{line['num_images']:,}" for line in lines.values()}))
        axis.set_title(f"{name}, with {num} images each", loc="left", fontsize=11)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return png(figure)


def draw_brackets(axis: Axes, lines: Mapping[str, Mapping[str, float]]) -> None:
    """One panel of `distance_chart`."""
    for place, line in enumerate(lines.values()):
        ends = [line["floor"], line["ceiling"]]
        axis.plot(ends, [place] * 2, color=PALE, linewidth=6, solid_capstyle="butt", zorder=0)
    for key, (marker, colour, lift, label) in MARKS.items():
        values = [line[key] for line in lines.values()]
        axis.scatter(values, range(len(values)), s=110, c=colour, marker=marker, label=label)
        for place, value in enumerate(values):
            axis.annotate(
                number(value), (value, place), (0, lift), textcoords="offset points",
                ha="center", color=colour, fontsize=9,
            )  # fmt: skip
    scale_distances(axis, lines.values())
    axis.margins(x=0.08)
    axis.set_yticks(range(len(lines)), list(lines))
    axis.set_ylim(len(lines) - 0.4, -0.6)
    axis.spines[["left", "right", "top"]].set_visible(False)
    axis.tick_params(axis="y", length=0)


def scale_distances(axis: Axes, lines: Collection[Mapping[str, float]]) -> None:
    """A logarithmic x axis where ceilings lie far above floors; linear around zero if need be."""
    low = min(min(line["floor"], line["value"]) for line in lines)
    high = max(max(line["ceiling"], line["value"]) for line in lines)
    if 0 < 20 * low < high:
        plain_log(axis, "x", low, high)
    elif low <= 0 < high:
        width = max(-low, high / 1000)
        decades = np.arange(math.ceil(math.log10(2 * width)), math.floor(math.log10(high)) + 1)
        axis.set_xscale("asinh", linear_width=width)
        axis.xaxis.set_major_locator(FixedLocator([0, *10.0**decades, *(3 * 10.0**decades)]))
        axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(short_number))
