"""Pictures of rows of images: how samples come out of noise, and their nearest real images."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pipeline.drawing.tiles import (
    FONT_SIZE,
    GAP,
    MARGIN,
    TEXT_COLOUR,
    Panel,
    cell_scale,
    panel_line,
    save_picture,
    stacked,
)

STRIP_CELL = 64  # px, at least: a time fits above it
LINE = FONT_SIZE + 6  # px of a line of text


def save_strip(
    path: Path, times: Sequence[float], states: np.ndarray, names: Sequence[str]
) -> None:
    """Write a PNG atomically: a column for each of T times, of states uint8 (T,B,H,W,3).

    `names` (B,) are those of the rows. Pixels are repeated so that a cell has at least
    STRIP_CELL px.
    """
    rows = np.arange(len(names))
    panels = [Panel(time_title(t), images, rows) for t, images in zip(times, states, strict=True)]
    scale = math.ceil(STRIP_CELL / states.shape[3])
    save_picture(path, stacked([panel_line(panels, names, rows.tolist(), 1, scale)]))


def time_title(time: float) -> str:
    """A time as it stands above its column: t=0, t=0.125, t=0.9995."""
    return f"t={round(time, 4):g}"


def neighbours_picture(
    samples: np.ndarray, real: np.ndarray, distances: np.ndarray, caption: Sequence[str]
) -> Image.Image:
    """One row per sample: samples uint8 (Q,H,W,3), then its k nearest real images (Q,k,H,W,3).

    Below each real image stands its distance (Q,k), below the picture the lines of `caption`.
    Pixels are repeated so that small images can be seen.
    """
    # Sizes
    font = ImageFont.load_default(size=FONT_SIZE)
    scale = cell_scale(samples.shape[2])
    height, width = samples.shape[1] * scale, samples.shape[2] * scale
    pitch = (width + GAP, height + LINE + GAP)
    left = 2 * MARGIN + width + MARGIN  # of the first neighbour
    right = left + real.shape[1] * pitch[0] - GAP + MARGIN
    right = max(right, 2 * MARGIN + int(max(font.getlength(line) for line in caption)) + 1)
    bottom = MARGIN + LINE + len(samples) * pitch[1]
    canvas = Image.new("RGB", (right, bottom + len(caption) * LINE + MARGIN), "white")
    draw = ImageDraw.Draw(canvas)

    def cell(x: int, y: int, image: np.ndarray, text: str) -> None:
        shown = Image.fromarray(image).resize((width, height), Image.Resampling.NEAREST)
        canvas.paste(shown, (x, y))
        draw.text((x + width / 2, y + height + 3), text, TEXT_COLOUR, font, anchor="ma")

    # Headings, images, caption
    draw.text((MARGIN, MARGIN), "sample", TEXT_COLOUR, font)
    draw.text((left, MARGIN), "nearest real images", TEXT_COLOUR, font)
    for row, (sample, neighbours) in enumerate(zip(samples, real, strict=True)):
        top = MARGIN + LINE + row * pitch[1]
        cell(MARGIN, top, sample, "")
        for column, image in enumerate(neighbours):
            distance = f"{distances[row, column]:#.3g}"
            cell(left + column * pitch[0], top, image, distance)
    for row, line in enumerate(caption):
        draw.text((MARGIN, bottom + row * LINE), line, TEXT_COLOUR, font)
    return canvas
