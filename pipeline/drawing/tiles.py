"""Grids of images: one row per class, one panel per set of images."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pipeline.base.errors import UserError
from pipeline.base.files import atomic
from pipeline.base.text import shorten

# Spaces, px
GAP = 4  # px between cells, and between rows
MARGIN = 12  # px around the picture; twice that between panels
# Text
FONT_SIZE = 14  # px
CHARACTER_WIDTH = 8  # px, of most letters
TITLE_HEIGHT = 28  # px
# Names and panels
NAME_LENGTH = 22  # characters of a class name
NO_CLASS = "any class"  # name of the rows of images without classes
PANELS_ABREAST = 2
TEXT_COLOUR = (32, 32, 32)


class Panel(NamedTuple):
    """One set of images: title ("" for none), uint8 (N,H,W,3), class of each (N,), -1: none."""

    title: str
    images: np.ndarray
    labels: np.ndarray


def row_names(labels: np.ndarray, classes: Sequence[str] | None) -> list[str]:
    """The names of rows of classes `labels` (B,); `classes` None: images without classes."""
    if classes is None:
        return [NO_CLASS] * len(labels)
    return [shorten(classes[label], NAME_LENGTH) for label in labels]


def cell_scale(size: int) -> int:
    """Factor that makes a cell of `size` px 48..96 px wide; 1 if `size` is larger."""
    return max(1, round(64 / size), math.ceil(48 / size))


def spread(labels: np.ndarray, rows: int) -> list[int]:
    """At most `rows` of the classes in `labels`, ascending, evenly spread from first to last."""
    present = np.unique(labels)
    places = np.linspace(0, len(present) - 1, min(rows, len(present))).round()
    return [int(label) for label in present[places.astype(int)]]


def one_class(panel: Panel, num: int) -> Panel:
    """At most `num` images of a panel as class 0: the first, or spread evenly if it has classes."""
    num = min(num, len(panel.images))
    last = num - 1 if (panel.labels < 0).any() else len(panel.images) - 1
    picked = np.linspace(0, last, num).astype(int)
    return Panel(panel.title, panel.images[picked], np.zeros(num, int))


def tiles(panel: Panel, picked: Sequence[int], columns: int, scale: int) -> Image.Image:
    """The cells of one panel: row r holds the first `columns` images of class picked[r].

    A class that is picked again goes on where its last row ended. Cells without an image stay
    white. Pixels are repeated `scale` times along both axes.
    """
    # A canvas for all cells
    height, width = (size * scale for size in panel.images.shape[1:3])
    size = (columns * (width + GAP) - GAP, len(picked) * (height + GAP) - GAP)
    canvas = Image.new("RGB", size, "white")
    # Row by row
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
    # Sizes
    font = ImageFont.load_default(size=FONT_SIZE)
    assert isinstance(font, ImageFont.FreeTypeFont)
    blocks = [tiles(panel, picked, columns, scale) for panel in panels]
    left = 2 * MARGIN + math.ceil(max(font.getlength(name) for name in names))
    top = TITLE_HEIGHT if any(panel.title for panel in panels) else 0
    right = left - MARGIN + sum(block.width + 2 * MARGIN for block in blocks)
    canvas = Image.new("RGB", (right, top + blocks[0].height), "white")
    draw = ImageDraw.Draw(canvas)
    pitch = panels[0].images.shape[1] * scale + GAP

    # Names at the left, then the panels with their titles
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
    """Panels of equal classes, two abreast: those that all panels have, or else the last panel's.

    All images are of one size. A single class fills all rows; if one panel has labels of -1
    (images without classes), so do all panels. `scale` None: cells of 48..96 px.
    Raises UserError if the last panel holds no images.
    """
    # Something to draw
    if not len(panels[-1].images):
        raise UserError("there are no images to draw: make at least one (sample.num)")
    if any((panel.labels < 0).any() for panel in panels):
        panels, classes = [one_class(panel, rows * columns) for panel in panels], [NO_CLASS]

    # Classes that are shown
    common = set.intersection(*(set(np.unique(panel.labels)) for panel in panels))
    picked = spread(np.array(sorted(common)) if common else panels[-1].labels, rows)
    names = [shorten(classes[label], NAME_LENGTH) for label in picked]
    if len(picked) == 1:
        rows = min(rows, -(-int((panels[-1].labels == picked[0]).sum()) // columns))
        picked, names = picked * rows, names + [""] * (rows - 1)

    # Panels, two abreast
    scale = scale or cell_scale(panels[0].images.shape[2])
    lines = [
        panel_line(panels[i : i + PANELS_ABREAST], names, picked, columns, scale)
        for i in range(0, len(panels), PANELS_ABREAST)
    ]
    return stacked(lines)


def stacked(lines: Sequence[Image.Image]) -> Image.Image:
    """Lines of panels one above the other, with a margin above each and below the last."""
    # Room for all lines
    width = max(line.width for line in lines)
    height = MARGIN + sum(line.height + MARGIN for line in lines)
    canvas = Image.new("RGB", (width, height), "white")

    # One below another
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
    """Images uint8 (N,H,W,3) of classes `labels` (N,) as a picture: one row per class.

    At most `rows` of the classes that occur, evenly spread, with at most `columns` images each;
    missing images stay white. A single class fills all rows, and so do images without classes
    (labels of -1). `scale` None: cells of 48..96 px.
    Raises UserError if there are no images.
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
    save_picture(path, image_grid(images, labels, classes, rows, columns))


def save_picture(path: Path, picture: Image.Image) -> None:
    """Write a picture to `path` as a PNG, atomically."""
    with atomic(path) as temporary:
        picture.save(temporary, format="PNG")
