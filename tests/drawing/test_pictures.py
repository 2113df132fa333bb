"""Pictures of rows of images: each image in its cell."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.drawing import pictures, tiles
from pipeline.drawing.pictures import neighbours_picture
from tests.report_inputs import CLASSES, noise


@pytest.mark.parametrize("size", [8, 48, 64, 96])
def test_each_state_is_in_its_cell(tmp_path: Path, size: int) -> None:
    states = np.stack([noise(3, column, size) for column in range(3)])
    pictures.save_strip(tmp_path / "strip.png", [0.0, 0.98765432, 1.0], states, CLASSES)
    with Image.open(tmp_path / "strip.png") as picture:
        pixels = np.asarray(picture)
    scale = {8: 8, 48: 2, 64: 1, 96: 1}[size]
    cell = size * scale
    for column in range(3):
        left = pixels.shape[1] - tiles.MARGIN - cell - (2 - column) * (cell + 2 * tiles.MARGIN)
        for row in range(3):
            bottom = pixels.shape[0] - tiles.MARGIN - (2 - row) * (cell + tiles.GAP)
            shown = pixels[bottom - cell : bottom, left : left + cell]
            expected = states[column, row].repeat(scale, 0).repeat(scale, 1)
            np.testing.assert_array_equal(shown, expected)


def test_headings_fit_above_the_smallest_cell() -> None:
    times = [0.0, 1 / 81, 0.125, 0.98765432, 0.99996, 1.0]
    assert [pictures.time_title(t) for t in times] == [
        "t=0", "t=0.0123", "t=0.125", "t=0.9877", "t=1", "t=1",
    ]  # fmt: skip
    assert all(
        len(pictures.time_title(t)) <= pictures.STRIP_CELL // tiles.CHARACTER_WIDTH for t in times
    )


@pytest.mark.parametrize(("size", "scale"), [(16, 4), (64, 1), (256, 1)])
def test_every_neighbour_stands_in_the_picture_pixel_by_pixel(size: int, scale: int) -> None:
    rng = np.random.default_rng(0)
    samples = rng.integers(0, 256, (2, size, size, 3), np.uint8)
    real = rng.integers(0, 256, (2, 5, size, size, 3), np.uint8)
    distances = np.sort(rng.random((2, 5)), 1)
    picture = neighbours_picture(samples, real, distances, ["nearest of 1,000 real images"])
    shown = np.asarray(picture)
    content = shown.tobytes()
    for image in (*samples, *real.reshape(-1, size, size, 3)):
        line = np.repeat(image[0], scale, axis=0).tobytes()
        assert line in content
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    assert shown.shape[2] == 3 and stream.tell() > 0
