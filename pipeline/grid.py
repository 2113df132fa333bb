"""Pictures: grids of images with one row a class, and the charts of the report."""

import io
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator
from PIL import Image, ImageDraw, ImageFont

from pipeline.errors import UserError
from pipeline.files import atomic

GAP = 4  # px between cells, and between rows
MARGIN = 12  # px around the picture; twice that between panels
FONT_SIZE = 14  # px
CHARACTER_WIDTH = 8  # px, of most letters
TITLE_HEIGHT = 28  # px
NAME_LENGTH = 22  # characters of a class name
PANELS_ABREAST = 2
TEXT_COLOUR = (32, 32, 32)
SMOOTHING = 0.025  # share of the rows on each side in the mean that smooths a curve
INK, PALE, GOOD, BAD = "#1f4e79", "#a9c4de", "#2a7f3f", "#b03a2e"
MARKS = {  # of a distance: marker, colour, height of its number above the line (points), meaning
    "floor": ("|", GOOD, -18, "floor: other real images"),
    "value": ("o", INK, 9, "samples"),
    "ceiling": ("|", BAD, -18, "ceiling: uniform noise"),
}


class Panel(NamedTuple):
    """One set of images: title ("" for none), uint8 (N,H,W,3), class of each (N,)."""

    title: str
    images: np.ndarray
    labels: np.ndarray


def cell_scale(size: int) -> int:
    """Factor that makes a cell of `size` px 48..96 px wide; 1 where `size` is larger."""
    return max(1, round(64 / size), math.ceil(48 / size))


def spread(labels: np.ndarray, rows: int) -> list[int]:
    """At most `rows` of the classes in `labels`, ascending, evenly spread from first to last."""
    present = np.unique(labels)
    places = np.linspace(0, len(present) - 1, min(rows, len(present))).round()
    return [int(label) for label in present[places.astype(int)]]


def shorten(text: str, limit: int = NAME_LENGTH) -> str:
    """`text`, cut to `limit` characters with an ellipsis where it is longer."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def tiles(panel: Panel, picked: Sequence[int], columns: int, scale: int) -> Image.Image:
    """The cells of one panel: row r holds the first `columns` images of class picked[r].

    A class that is picked again goes on where its last row ended. Cells without an image stay
    white. Pixels are repeated `scale` times along both axes.
    """
    height, width = (size * scale for size in panel.images.shape[1:3])
    size = (columns * (width + GAP) - GAP, len(picked) * (height + GAP) - GAP)
    canvas = Image.new("RGB", size, "white")
    for row, label in enumerate(picked):
        first = columns * list(picked[:row]).count(label)
        indices = np.flatnonzero(panel.labels == label)[first : first + columns]
        for column, index in enumerate(indices):  # one at a time: the array may be a memory map
            cell = Image.fromarray(np.ascontiguousarray(panel.images[index]))
            cell = cell.resize((width, height), Image.Resampling.NEAREST)
            canvas.paste(cell, (column * (width + GAP), row * (height + GAP)))
    return canvas


def panel_line(
    panels: Sequence[Panel], names: Sequence[str], picked: Sequence[int], columns: int, scale: int
) -> Image.Image:
    """Panels side by side, the class names left of the first, a title above each that has one."""
    font = ImageFont.load_default(size=FONT_SIZE)
    assert isinstance(font, ImageFont.FreeTypeFont)
    blocks = [tiles(panel, picked, columns, scale) for panel in panels]
    left = 2 * MARGIN + math.ceil(max(font.getlength(name) for name in names))
    top = TITLE_HEIGHT if any(panel.title for panel in panels) else 0
    right = left - MARGIN + sum(block.width + 2 * MARGIN for block in blocks)
    canvas = Image.new("RGB", (right, top + blocks[0].height), "white")
    draw = ImageDraw.Draw(canvas)
    pitch = panels[0].images.shape[1] * scale + GAP
    for row, name in enumerate(names):
        middle = top + row * pitch + (pitch - GAP) / 2
        draw.text((left - MARGIN, middle), name, TEXT_COLOUR, font, anchor="rm")
    for panel, block in zip(panels, blocks, strict=True):
        canvas.paste(block, (left, top))
        title = shorten(panel.title, block.width // CHARACTER_WIDTH)
        draw.text((left, top - 10), title, TEXT_COLOUR, font, anchor="ls")
        left += block.width + 2 * MARGIN
    return canvas


def panel_grid(
    panels: Sequence[Panel], classes: Sequence[str], rows: int, columns: int, scale: int | None
) -> Image.Image:
    """Panels of equal classes, two abreast; which classes is decided by the last panel's labels.

    All images are of one size. A single class fills all rows. `scale` None: cells of 48..96 px.
    Raises UserError where the last panel holds no images.
    """
    if not len(panels[-1].images):
        raise UserError("there are no images to draw: make at least one (sample.num)")
    picked = spread(panels[-1].labels, rows)
    names = [shorten(classes[label]) for label in picked]
    if len(picked) == 1:
        rows = min(rows, -(-len(panels[-1].images) // columns))
        picked, names = picked * rows, names + [""] * (rows - 1)
    scale = scale or cell_scale(panels[0].images.shape[2])
    lines = [
        panel_line(panels[i : i + PANELS_ABREAST], names, picked, columns, scale)
        for i in range(0, len(panels), PANELS_ABREAST)
    ]
    width = max(line.width for line in lines)
    height = MARGIN + sum(line.height + MARGIN for line in lines)
    canvas = Image.new("RGB", (width, height), "white")
    top = MARGIN
    for line in lines:
        canvas.paste(line, (0, top))
        top += line.height + MARGIN
    return canvas


def image_grid(
    images: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    rows: int,
    columns: int,
    scale: int | None = None,
) -> Image.Image:
    """Images uint8 (N,H,W,3) of classes `labels` (N,) as a picture: one row a class.

    At most `rows` of the classes that occur, evenly spread, with at most `columns` images each;
    missing images stay white. A single class fills all rows. `scale` None: cells of 48..96 px.
    Raises UserError where there are no images.
    """
    return panel_grid([Panel("", images, labels)], classes, rows, columns, scale)


def save_grid(
    path: Path,
    images: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    rows: int,
    columns: int,
) -> None:
    """Write `image_grid` of the arguments to `path` as a PNG, atomically."""
    picture = image_grid(images, labels, classes, rows, columns)
    with atomic(path) as temporary:
        picture.save(temporary, format="PNG")


# --- charts ------------------------------------------------------------------------------------


def number(value: float | None) -> str:
    """`value` with four significant digits or, from 1,000 on, as a whole number; "" for None."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 or isinstance(value, int) else f"{value:.4g}"


def short_number(value: float, _position: int | None = None) -> str:
    """`value` in thousands, millions or billions, for example 1.2 M: a tick's text."""
    for size, suffix in ((1e9, " B"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= size:
            return f"{value / size:g}{suffix}"
    return f"{value:g}"


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
