"""The charts of the report: training curve, distances between floor and ceiling, and over NFE."""

import io
import math
import textwrap
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from pipeline.base.text import number, short_number

INK, PALE, GOOD, BAD = "#1f4e79", "#a9c4de", "#2a7f3f", "#b03a2e"
FAMILIES = ("#1f4e79", "#c8631c", "#6a3d9a", "#0f7f86", "#8c2d55", "#5b6b1e")  # of samplers
STYLES = ("--", ":", "-.", (0, (6, 1, 1, 1, 1, 1)))  # of floors
MARKS = {  # of a distance: marker, colour, height of its number above the line (points), meaning
    "floor": ("|", GOOD, -18, "floor: other real images"),
    "value": ("o", INK, 9, "samples"),
    "ceiling": ("|", BAD, -18, "ceiling: uniform noise"),
}


class Bracket(Protocol):
    """A distance between those of other real images and of noise, at equal numbers of images."""

    @property
    def num_images(self) -> int: ...  # on each side
    @property
    def floor(self) -> float: ...
    @property
    def value(self) -> float: ...
    @property
    def ceiling(self) -> float: ...


class Score(Protocol):
    """A metric of a set of samples."""

    @property
    def label(self) -> str: ...  # of the metric
    @property
    def sampler(self) -> str: ...
    @property
    def family(self) -> str: ...  # of samplers that differ in their number of steps
    @property
    def nfe_mean(self) -> float: ...  # network evaluations per image
    @property
    def value(self) -> float: ...
    @property
    def bracket(self) -> Bracket | None: ...


class Line(NamedTuple):
    """The mean of some brackets."""

    floor: float
    value: float
    ceiling: float


def png(figure: Figure) -> bytes:
    """A figure as the bytes of a PNG."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110)
    return stream.getvalue()


def plain_log(axis: Axes, letter: str, low: float, high: float) -> None:
    """A log scale with plain numbers on axis `letter` (x or y) for values from `low` to `high`."""
    several_decades = high / low > 100
    axis.set(**{f"{letter}scale": "log"})
    ticks = getattr(axis, f"{letter}axis")
    ticks.set_major_locator(LogLocator(subs=(1,) if several_decades else (1, 1.5, 2, 3, 5, 7)))
    ticks.set_major_formatter(FuncFormatter(short_number))
    ticks.set_minor_formatter(NullFormatter())


def distance_chart(title: str, scores: Sequence[Score]) -> bytes:
    """PNG with a panel per metric and a line per sampler, from floor to ceiling, its seeds on it.

    Of the `scores` that have a bracket.
    """
    # brackets by metric and sampler
    brackets: dict[str, dict[str, list[Bracket]]] = {}  # metric -> sampler -> seeds
    for score in scores:
        if score.bracket:
            samplers = brackets.setdefault(score.label, {})
            samplers.setdefault(score.sampler, []).append(score.bracket)
    # figure
    sizes = [len(lines) + 1.0 for lines in brackets.values()] or [1.0]
    figure = Figure(figsize=(9, 0.8 + 0.6 * sum(sizes)), layout="constrained")
    figure.suptitle(title if brackets else f"{title}: no distance has a floor and a ceiling")
    if not brackets:
        return png(figure)
    # a panel per metric
    panels = figure.subplots(len(brackets), height_ratios=sizes, squeeze=False)[:, 0]
    for axis, (name, lines) in zip(panels, brackets.items(), strict=True):
        draw_brackets(axis, lines)
        nums = sorted({line.num_images for seeds in lines.values() for line in seeds})
        num = " or ".join(f"{num:,}" for num in nums)
        axis.set_title(f"{name}, with {num} images each", loc="left", fontsize=11)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return png(figure)


def draw_brackets(axis: Axes, lines: Mapping[str, Sequence[Bracket]]) -> None:
    """One panel of `distance_chart`: the mean over the seeds of a sampler, each seed in white."""
    means = [Line(*(mean_of(seeds, key) for key in Line._fields)) for seeds in lines.values()]
    # a line per sampler, its seeds on it
    for place, (mean, seeds) in enumerate(zip(means, lines.values(), strict=True)):
        ends = [mean.floor, mean.ceiling]
        axis.plot(ends, [place] * 2, color=PALE, linewidth=6, solid_capstyle="butt", zorder=0)
        if len(seeds) > 1:
            values = [line.value for line in seeds]
            axis.scatter(values, [place] * len(values), s=12, c="white", zorder=3)
    # floor, value and ceiling with their numbers
    for key, (marker, colour, lift, label) in MARKS.items():
        values = [getattr(mean, key) for mean in means]
        axis.scatter(values, range(len(values)), s=110, c=colour, marker=marker, label=label)
        for place, value in enumerate(values):
            axis.annotate(
                number(value), (value, place), (0, lift), textcoords="offset points",
                ha="center", color=colour, fontsize=9,
            )  # fmt: skip
    # axes
    scale_distances(axis, means)
    axis.margins(x=0.08)
    names = [textwrap.fill(name.replace("-", "- "), 32).replace("- ", "-") for name in lines]
    axis.set_yticks(range(len(lines)), names)
    axis.set_ylim(len(lines) - 0.4, -0.6)
    axis.spines[["left", "right", "top"]].set_visible(False)
    axis.tick_params(axis="y", length=0)


def mean_of(rows: Sequence[object], key: str) -> float:
    """The mean of one attribute of the rows."""
    return float(np.mean([getattr(row, key) for row in rows]))


def nfe_chart(title: str, rows: Sequence[Score], protocols: Sequence[str]) -> bytes:
    """PNG of a distance over the network evaluations of an image, `protocols` in small print.

    `rows`: the Fréchet distances. A dot per seed, a line per family through the means of its
    samplers, and the floor dashed.
    """
    figure = Figure(figsize=(9, 6), layout="constrained")
    axis = figure.subplots()
    if not rows:
        axis.set_axis_off()
        figure.suptitle("no Fréchet distance: evaluate.metrics does not name fid")
        return png(figure)
    # title
    alone = len({row.sampler for row in rows}) == 1
    hint = " (one sampler: more of them in sample.runs make a curve)" if alone else ""
    figure.suptitle(" and ".join(dict.fromkeys(row.label for row in rows)) + hint)
    small = [line for text in [title, *protocols] for line in textwrap.wrap(text, 125)]
    axis.set_title("\n".join(small), fontsize=8, loc="left")
    # families and floors
    for place, name in enumerate(dict.fromkeys(row.family for row in rows)):
        colour = FAMILIES[place % len(FAMILIES)]
        lift = -17 if place % 2 else 9  # of the numbers, points: those of neighbours do not meet
        draw_family(axis, name, [row for row in rows if row.family == name], colour, lift)
    draw_floors(axis, rows)
    frame_nfe(axis, rows)
    return png(figure)


def draw_family(axis: Axes, name: str, rows: Sequence[Score], colour: str, lift: int) -> None:
    """The seeds of a family of samplers as dots, their means as a line with numbers."""
    samplers: dict[str, list[Score]] = {}
    for row in rows:
        samplers.setdefault(row.sampler, []).append(row)
    means = sorted((mean_of(g, "nfe_mean"), mean_of(g, "value")) for g in samplers.values())
    nfe, values = zip(*means, strict=True)
    axis.plot(nfe, values, color=colour, marker="o", markersize=7, linewidth=1.8, label=name)
    points = [row.nfe_mean for row in rows], [row.value for row in rows]
    axis.scatter(*points, s=14, c="white", edgecolors=colour, zorder=3)
    for place in means:
        axis.annotate(
            number(place[1]), place, (0, lift), textcoords="offset points", ha="center",
            color=colour, fontsize=9,
        )  # fmt: skip


def draw_floors(axis: Axes, rows: Sequence[Score]) -> None:
    """A dashed line at the floor of each number of images that it was measured at."""
    floors: dict[int, list[float]] = {}
    for row in rows:
        if row.bracket:
            floors.setdefault(row.bracket.num_images, []).append(row.bracket.floor)
    for place, (num, values) in enumerate(floors.items()):
        label, style = f"floor: {num:,} other real images", STYLES[place % len(STYLES)]
        axis.axhline(float(np.mean(values)), color=GOOD, linestyle=style, label=label)


def frame_nfe(axis: Axes, rows: Sequence[Score]) -> None:
    """Scales, limits, names and legend of `nfe_chart`."""
    nfe, values = [row.nfe_mean for row in rows], [row.value for row in rows]
    values += [row.bracket.floor for row in rows if row.bracket]
    # Evaluations below
    axis.set_xscale("log")
    axis.set_xlim(min(nfe) / 1.3, max(nfe) * 1.3)
    axis.xaxis.set_major_locator(FixedLocator(apart(nfe)))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    # Distances at the side
    if 0 < 4 * min(values) < max(values):
        plain_log(axis, "y", min(values), max(values))
    axis.margins(y=0.12)
    axis.set_xlabel("network evaluations of an image (NFE)")
    axis.set_ylabel("distance to the real images")
    # Grid and legend
    axis.grid(alpha=0.25)
    names = axis.get_legend_handles_labels()[1]
    axis.figure.legend(loc="outside lower center", ncols=1 if max(map(len, names)) > 45 else 2)


def apart(values: Sequence[float]) -> list[float]:
    """Ticks at the values of a log scale, without those too near to the one before."""
    ticks: list[float] = []
    for value in sorted(values):
        if not ticks or value > 1.08 * ticks[-1]:
            ticks.append(value)
    return ticks


def scale_distances(axis: Axes, lines: Collection[Line]) -> None:
    """A logarithmic x axis if ceilings lie far above floors; linear around zero if need be."""
    low = min(min(line.floor, line.value) for line in lines)
    high = max(max(line.ceiling, line.value) for line in lines)
    if 0 < 20 * low < high:
        plain_log(axis, "x", low, high)
    elif low <= 0 < high:
        width = max(-low, high / 1000)
        decades = np.arange(math.ceil(math.log10(2 * width)), math.floor(math.log10(high)) + 1)
        axis.set_xscale("asinh", linear_width=width)
        axis.xaxis.set_major_locator(FixedLocator([0, *10.0**decades, *(3 * 10.0**decades)]))
        axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(short_number))
