"""Resampling: the bytes of Pillow, by every filter, of any part of any image."""

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.Image import Resampling

from pipeline.base.errors import UserError
from pipeline.images import resample as module
from pipeline.images.resample import AREA, BICUBIC, BOX, LANCZOS, Box, resample

PILLOWS = {
    BOX: Resampling.BOX,
    BICUBIC: Resampling.BICUBIC,
    LANCZOS: Resampling.LANCZOS,
}
SIDE = st.one_of(st.integers(1, 12), st.integers(1, 200), st.integers(1, 600))


def noise(width: int, height: int, seed: int) -> np.ndarray:
    """Black and white dots, so that sums of negative weights leave [0, 255] too."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return pixels if seed % 2 else np.where(pixels > 127, 255, 0).astype(np.uint8)


def rows_first(
    image: Image.Image, size: tuple[int, int], kind: Resampling, box: Box | None = None
) -> Image.Image:
    """Pillow's `resize` along the rows, then along the columns, as every version up to 12 does."""
    left, top, right, bottom = box or (0, 0, *image.size)
    narrow = image.resize((size[0], image.height), kind, (left, 0, right, image.height))
    return narrow.resize(size, kind, (0, top, size[0], bottom))


def assert_as_pillow(pixels: np.ndarray, size: tuple[int, int], kind: int, box: Box | None) -> None:
    ours = resample(pixels, *size, kind, box)
    theirs = np.asarray(rows_first(Image.fromarray(pixels), size, PILLOWS[kind], box))
    np.testing.assert_array_equal(ours, theirs)


@settings(max_examples=400, deadline=None)
@given(SIDE, SIDE, SIDE, SIDE, st.sampled_from(sorted(PILLOWS)), st.integers(0, 9))
@example(1, 1, 256, 256, LANCZOS, 0)
@example(500, 375, 64, 64, BOX, 0)
@example(300, 600, 64, 64, BOX, 1)  # so tall that Pillow 13 filters the columns first
@example(100, 180, 20, 20, BOX, 1)  # as tall as may be for the rows to come first there
@example(4000, 30, 8, 8, LANCZOS, 1)
@example(30, 4000, 8, 8, LANCZOS, 1)
def test_all_of_an_image(
    width: int, height: int, new_width: int, new_height: int, kind: int, seed: int
) -> None:
    assert_as_pillow(noise(width, height, seed), (new_width, new_height), kind, None)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 9), st.integers(1, 9))
def test_areas_are_means_of_what_a_pixel_covers(
    width: int, height: int, down: int, across: int
) -> None:
    """Against the image with each pixel made as many as the smaller one has, then averaged."""
    new_width, new_height = -(-width // across), -(-height // down)
    pixels = noise(width, height, 1)
    fine = pixels.repeat(new_height, 0).repeat(new_width, 1).astype(float)
    means = fine.reshape(new_height, height, new_width, width, 3).mean((1, 3))
    ours = resample(pixels, new_width, new_height, AREA)
    assert np.abs(ours - means).max() <= 1.0 + 1e-4  # rounded after each axis


FRACTION = st.floats(0, 1)


@settings(max_examples=400, deadline=None)
@given(SIDE, SIDE, SIDE, SIDE, st.sampled_from(sorted(PILLOWS)), st.tuples(*[FRACTION] * 4))
def test_part_of_an_image(
    width: int,
    height: int,
    new_width: int,
    new_height: int,
    kind: int,
    part: tuple[float, float, float, float],
) -> None:
    """Of any fractions of pixels."""
    left, right = edges(width, *part[:2])
    top, bottom = edges(height, *part[2:])
    size, box = (new_width, new_height), (left, top, right, bottom)
    assert_as_pillow(noise(width, height, 1), size, kind, box)


def edges(side: int, start: float, length: float) -> tuple[float, float]:
    """A part of [0, side] of half a pixel or more."""
    low = start * (side - 0.5)
    return low, min(side, low + 0.5 + length * (side - low - 0.5))


@pytest.mark.parametrize("kind", [*sorted(PILLOWS), AREA])
def test_a_view_is_read_as_it_is(kind: int) -> None:
    """Neither every other column nor a mirrored image is mistaken for what lies in memory."""
    whole = noise(200, 90, 1)
    for view in (whole[:, ::2], whole[::-1], whole[10:50, 20:70]):
        copy = np.ascontiguousarray(view)
        np.testing.assert_array_equal(resample(view, 30, 20, kind), resample(copy, 30, 20, kind))


def test_what_has_the_size_already_is_kept() -> None:
    pixels = noise(40, 30, 1)
    np.testing.assert_array_equal(resample(pixels, 40, 30, LANCZOS), pixels)


def test_a_full_disk_is_told_before_the_first_image(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "across", full)
    with pytest.raises(UserError, match="No space left on device.*NUMBA_CACHE_DIR"):
        module.prepare()


def test_without_a_place_to_keep_them_filters_are_compiled_each_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given: list[dict[str, bool]] = []

    def njit(**options: bool) -> Any:
        given.append(options)
        if options.get("cache"):
            raise RuntimeError("cannot cache function")
        return lambda function: function

    monkeypatch.setattr(module, "njit", njit)
    assert module.compiled(len) is len and len(given) == 2
