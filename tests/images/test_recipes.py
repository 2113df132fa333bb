"""Recipes: against the same steps written out with Pillow, numpy slices and whole images."""

from typing import get_args

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.config.schema import Data
from pipeline.images.recipes import MAX_PIXELS, RECIPES, shrink, shrink_halved
from tests.images.test_resample import rows_first

SIZES = st.tuples(st.integers(1, 90), st.integers(1, 90))


def squashed(image: Image.Image, res: int) -> Image.Image:
    return rows_first(image, (res, res), Image.Resampling.BOX)


def dhariwal_nichol(image: Image.Image, res: int) -> Image.Image:
    width, height = image.size
    while min(width, height) >= 2 * res:
        width, height = width // 2, height // 2
        image = rows_first(image, (width, height), Image.Resampling.BOX)
    scale = res / min(width, height)
    pixels = np.asarray(
        rows_first(image, (round(width * scale), round(height * scale)), Image.Resampling.BICUBIC)
    )
    top, left = (pixels.shape[0] - res) // 2, (pixels.shape[1] - res) // 2
    return Image.fromarray(np.ascontiguousarray(pixels[top : top + res, left : left + res]))


def karras(image: Image.Image, res: int) -> Image.Image:
    width, height = image.size
    side = min(width, height)
    pixels = np.asarray(image)[
        (height - side) // 2 : (height + side) // 2, (width - side) // 2 : (width + side) // 2
    ]
    square = Image.fromarray(np.ascontiguousarray(pixels))
    return rows_first(square, (res, res), Image.Resampling.LANCZOS)


ORACLES = {"box": squashed, "adm": dhariwal_nichol, "edm": karras}


def noise(size: tuple[int, int], seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def ramps(width: int, height: int) -> Image.Image:
    """Red grows from left to right, green from top to bottom, blue towards both: smooth."""
    y, x = np.mgrid[0:height, 0:width]
    x, y = 255 * (x + 0.5) / width, 255 * (y + 0.5) / height
    return Image.fromarray(np.stack([x, y, (x + y) / 2], -1).round().astype(np.uint8))


@settings(max_examples=200, deadline=None)
@given(
    recipe=st.sampled_from(sorted(RECIPES.keys() - {"as_is"})),
    size=SIZES,
    res=st.sampled_from([8, 16, 31, 64, 100, 256]),
    seed=st.integers(0, 9),
)
@example("adm", (99, 96), 80, 0)  # 82.5 px before the crop
@example("adm", (4000, 30), 64, 0)
@example("edm", (30, 4000), 64, 0)
@example("box", (4000, 30), 256, 0)
@example("adm", (500, 375), 64, 0)
@example("edm", (500, 375), 64, 0)
@example("adm", (1, 1), 8, 0)
def test_recipes_are_their_steps(recipe: str, size: tuple[int, int], res: int, seed: int) -> None:
    image = noise(size, seed)
    pixels = shrink(np.asarray(image), recipe, res)
    assert pixels.shape == (res, res, 3) and pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    np.testing.assert_array_equal(
        pixels, np.asarray(ORACLES[recipe.removesuffix("-fast")](image, res))
    )


@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_recipes_keep_what_has_their_size(recipe: str) -> None:
    image = noise((32, 32))
    np.testing.assert_array_equal(shrink(np.asarray(image), recipe, 32), np.asarray(image))


def test_geometry() -> None:
    """Squashed: all of the image. Cropped: of twice the width, the middle half."""
    image = np.asarray(ramps(256, 128))
    for recipe, (left, right) in {"box": (4, 251), "adm": (66, 189), "edm": (66, 189)}.items():
        red, green = shrink(image, recipe, 32)[:, :, 0], shrink(image, recipe, 32)[:, :, 1]
        assert np.abs(red[:, 0].astype(int) - left).max() <= 1
        assert np.abs(red[:, -1].astype(int) - right).max() <= 1
        assert np.abs(green[[0, -1]].astype(int).T - [4, 251]).max() <= 1


@pytest.mark.parametrize("size", [(1, 4000), (4000, 1)])
def test_adm_refuses_what_would_grow_too_large(size: tuple[int, int]) -> None:
    with pytest.raises(Image.DecompressionBombError, match="1024000"):
        shrink(np.asarray(noise(size)), "adm", 256)
    assert MAX_PIXELS < 256 * 1_024_000
    assert shrink(np.asarray(noise(size)), "edm", 256).shape == (256, 256, 3)


# adm: each exact halving rounds up twice, and drops part of an odd row.
@pytest.mark.parametrize(("recipe", "levels"), [("box", 3), ("adm", 5), ("edm", 2)])
@pytest.mark.parametrize("size", [(500, 375), (499, 331), (333, 500), (257, 263), (1100, 1027)])
@pytest.mark.parametrize("times", [1, 2, 3])
def test_halved_images_keep_their_place(
    recipe: str, levels: int, size: tuple[int, int], times: int
) -> None:
    """Smooth images, averaged by blocks as a decoder does it; a pixel is 8 grey levels wide."""
    image, block = np.asarray(ramps(*size)), 2**times
    pixels = image.astype(float)
    padded = np.pad(pixels, [(0, -size[1] % block), (0, -size[0] % block), (0, 0)], "edge")
    rows, columns = padded.shape[0] // block, padded.shape[1] // block
    means = padded.reshape(rows, block, columns, block, 3).mean((1, 3)).round().astype(np.uint8)
    fast = shrink_halved(means, f"{recipe}-fast", 32, size, times).astype(int)
    assert np.abs(fast - shrink(image, recipe, 32)).max() <= levels


def test_the_table_has_every_recipe_that_a_configuration_may_name() -> None:
    assert set(get_args(Data.model_fields["recipe"].annotation)) == RECIPES.keys()


@pytest.mark.parametrize("size", [(32, 31), (31, 32), (64, 64)])
def test_as_is_refuses_other_sizes(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=f"is of {size[0]} x {size[1]} px, not of 32 x 32 px"):
        shrink(np.asarray(noise(size)), "as_is", 32)
