"""The picture of a search: distances over EMA width, guidance weight and interval."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from pipeline.base.text import number, short_number
from pipeline.drawing.charts import BAD, FAMILIES, plain_log, png

AXES = {"ema_width": "EMA width", "guidance": "guidance weight", "interval": "guidance interval"}
Value = Any  # a number, None, or the text of an interval


class Try(Protocol):
    """A choice, and its distance."""

    @property
    def ema_width(self) -> float | None: ...
    @property
    def guidance(self) -> float: ...
    @property
    def interval(self) -> list[float]: ...  # two times
    @property
    def distance(self) -> float: ...


def surface_chart(title: str, metric: str, tries: Sequence[Try], chosen: Try) -> bytes:
    """PNG of all `tries`, the chosen one marked.

    A heat map of widths and weights if they are a whole grid, one for each interval; else a panel
    of curves for each key of which there are several values.
    """
    # Values of each key
    values = {key: dict.fromkeys(value_of(attempt, key) for attempt in tries) for key in AXES}
    counts = {key: len(distinct) for key, distinct in values.items()}
    is_grid = len(tries) == counts["ema_width"] * counts["guidance"] * counts["interval"]

    # Panels
    if is_grid and counts["ema_width"] > 1 and counts["guidance"] > 1:
        panels = list(values["interval"])
        figure = Figure(figsize=(1 + 7 * len(panels), 6), layout="constrained")
        for axis, interval in zip(subplots(figure, len(panels)), panels, strict=True):
            part = [t for t in tries if value_of(t, "interval") == interval]
            draw_map(axis, part, tries, chosen)
            if len(panels) > 1:
                axis.set_title(f"guided from {interval}", fontsize=11)
    else:
        keys = [key for key, count in counts.items() if count > 1] or ["guidance"]
        figure = Figure(figsize=(1 + 6.5 * len(keys), 5.5), layout="constrained")
        for axis, key in zip(subplots(figure, len(keys)), keys, strict=True):
            draw_curves(axis, key, tries, chosen)
            axis.set_ylabel(metric)
    figure.suptitle(f"{title}\n{metric}: {len(tries)} tries, {in_words(chosen)} chosen")
    return png(figure)


def subplots(figure: Figure, count: int) -> list[Axes]:
    """Panels side by side."""
    return list(figure.subplots(1, count, squeeze=False)[0])


def value_of(attempt: Try, key: str) -> Value:
    """The value of a key as a chart names it."""
    if key == "interval":
        return "{:g} to {:g}".format(*attempt.interval)
    return getattr(attempt, key)


def in_words(attempt: Try) -> str:
    """A choice in words."""
    width = "" if attempt.ema_width is None else f"EMA width {attempt.ema_width:g}, "
    between = "" if list(attempt.interval) == [0, 1] else f" from {value_of(attempt, 'interval')}"
    return f"{width}guidance {attempt.guidance:g}{between}"


def draw_map(axis: Axes, part: Sequence[Try], tries: Sequence[Try], chosen: Try) -> None:
    """A heat map of a grid of widths and weights, its values written; colours of all `tries`."""
    # Distances by place
    rows, columns = (
        sorted({value for t in part if isinstance(value := value_of(t, key), float | int)})
        for key in ("ema_width", "guidance")
    )
    table = np.full((len(rows), len(columns)), np.nan)
    for attempt in part:
        width = value_of(attempt, "ema_width")
        table[rows.index(width), columns.index(attempt.guidance)] = attempt.distance

    # Colours, the least the palest
    logs = np.log(np.maximum([t.distance for t in tries], 1e-12))
    low, high = float(logs.min()), float(max(logs.max(), logs.min() + 1e-9))
    shades = np.log(np.maximum(table, 1e-12))
    axis.imshow(shades, cmap="Blues", vmin=low, vmax=high + 0.6 * (high - low), aspect="auto")

    # Numbers
    for place, distance in np.ndenumerate(table):
        row, column = place
        axis.text(column, row, number(float(distance)), ha="center", va="center", fontsize=10)
    if any(attempt == chosen for attempt in part):
        place = columns.index(chosen.guidance), rows.index(float(chosen.ema_width or 0))
        axis.plot(*place, "s", ms=44, mfc="none", mec=BAD, mew=2.5, label="chosen", clip_on=False)
    axis.set_xticks(range(len(columns)), [f"{value:g}" for value in columns])
    axis.set_yticks(range(len(rows)), [f"{value:g}" for value in rows])
    axis.set_xlabel(AXES["guidance"])
    axis.set_ylabel(AXES["ema_width"])


def draw_curves(axis: Axes, key: str, tries: Sequence[Try], chosen: Try) -> None:
    """Distances over one key, a curve for all tries that are alike in the others."""
    # Tries that differ in this key alone
    others = [name for name in AXES if name != key]
    groups: dict[tuple[Value, ...], list[Try]] = {}
    for attempt in tries:
        groups.setdefault(tuple(value_of(attempt, name) for name in others), []).append(attempt)
    groups = {same: group for same, group in groups.items() if len(group) > 1} or groups

    # A curve for each
    for count, (same, group) in enumerate(groups.items()):
        ordered = sorted(group, key=lambda t: t.interval if key == "interval" else getattr(t, key))
        places = [value_of(attempt, key) for attempt in ordered]
        distances = [attempt.distance for attempt in ordered]
        colour = FAMILIES[count % len(FAMILIES)]
        axis.plot(places, distances, "o-", color=colour, ms=5, label=label(others, same))
        for place, distance in zip(places, distances, strict=True):
            axis.annotate(
                number(distance), (place, distance), (0, 7), textcoords="offset points",
                ha="center", fontsize=7, color=colour,
            )  # fmt: skip

    # The chosen one
    axis.plot(
        [value_of(chosen, key)], [chosen.distance], "o", ms=15, mfc="none", mec=BAD, mew=2,
        label="chosen",
    )  # fmt: skip
    widths = [t.ema_width for t in tries if t.ema_width]
    if key == "ema_width" and widths:
        plain_log(axis, "x", min(widths), max(widths))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_major_formatter(FuncFormatter(short_number))
    axis.set_xlabel(AXES[key])
    axis.margins(y=0.12)
    axis.grid(alpha=0.25)
    axis.legend(fontsize=8)


def label(keys: Sequence[str], values: Sequence[Value]) -> str:
    """The values that the tries of a curve share, in words."""
    parts = [
        f"{AXES[key]} {value:g}" if isinstance(value, float | int) else f"guided from {value}"
        for key, value in zip(keys, values, strict=True)
        if value not in (None, "0 to 1")
    ]
    return ", ".join(parts) or "guided at all times"
