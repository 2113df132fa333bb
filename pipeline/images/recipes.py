"""Published ways to make a small square image of a photograph, by Pillow's filters.

`shrink` is exact. `shrink_halved` comes close, for images that a JPEG decoder has halved already.
Images are arrays (H, W, 3) uint8. A new recipe is a function here, a row of RECIPES, and a choice
of data.recipe in pipeline/config/schema.py.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL.Image import DecompressionBombError

from pipeline.images.resample import AREA, BICUBIC, BOX, LANCZOS, Box, resample

MAX_PIXELS = 178_956_970  # of an image on the way: the bound above which Pillow opens none


def centre(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """The middle of an image; of an odd surplus, the larger half is cut off right and below."""
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return image[top : top + height, left : left + width]


def box(image: np.ndarray, resolution: int) -> np.ndarray:
    """Both axes squashed by a box filter (Chrabaszcz et al. 2017: downsampled ImageNet)."""
    return resample(image, resolution, resolution, BOX)


def adm(image: np.ndarray, resolution: int, part: tuple[float, float] | None = None) -> np.ndarray:
    """Halved while twice too large, short side to `resolution`, centre crop.

    The recipe of Dhariwal & Nichol 2021. `part`: width and height of the part of the image
    that counts, from its upper left corner, px; None: all of it. Raises DecompressionBombError if
    the image before the crop would have more than MAX_PIXELS.
    """
    # The whole image, or part
    width, height = (int(side) for side in part or (image.shape[1], image.shape[0]))
    area: Box | None = (0.0, 0.0, *part) if part else None
    # halvings by boxes
    while min(width, height) >= 2 * resolution:
        width, height = width // 2, height // 2
        image, area = resample(image, width, height, BOX, area), None
    # the short side to the resolution
    scale = resolution / min(width, height)
    size = round(width * scale), round(height * scale)
    if size[0] * size[1] > MAX_PIXELS:
        raise DecompressionBombError(
            f"{width} x {height} px is too elongated for the recipe adm, "
            f"which would make {size[0]} x {size[1]} px of it"
        )
    return centre(resample(image, *size, BICUBIC, area), resolution, resolution)


def edm(image: np.ndarray, resolution: int) -> np.ndarray:
    """The largest centred square, by a Lanczos filter (Karras et al. 2022: center-crop)."""
    side = min(image.shape[:2])
    return resample(centre(image, side, side), resolution, resolution, LANCZOS)


class WrongSize(ValueError):
    """An image that as_is cannot take; the message says its size."""


def as_is(image: np.ndarray, resolution: int) -> np.ndarray:
    """The image itself, which another program has made; raises WrongSize if it has another size."""
    height, width = image.shape[:2]
    if (width, height) != (resolution, resolution):
        raise WrongSize(f"is of {width} x {height} px, not of {resolution} x {resolution} px")
    return image


# --- after a JPEG decoder has halved both sides -------------------------------------------------

Size = tuple[int, int]  # width and height, px


def box_halved(image: np.ndarray, resolution: int, size: Size, times: int) -> np.ndarray:
    """`box` of whole pixels, as Pillow has it: those of the image before it was halved."""
    area = (0.0, 0.0, *halved(size, times))
    return resample(image, resolution, resolution, AREA, area, grain=2**times)


def adm_halved(image: np.ndarray, resolution: int, size: Size, times: int) -> np.ndarray:
    """`adm`, which halves images itself."""
    return adm(image, resolution, halved(size, times))


def edm_halved(image: np.ndarray, resolution: int, size: Size, times: int) -> np.ndarray:
    """`edm` of a square that may begin within a pixel."""
    side = min(halved(size, times))
    start_x, start_y = ((length - min(size)) // 2 / 2**times for length in size)
    square = (start_x, start_y, start_x + side, start_y + side)
    return resample(image, resolution, resolution, LANCZOS, square)


def halved(size: Size, times: int) -> tuple[float, float]:
    """Width and height, px, with a fraction of the last column and row."""
    return size[0] / 2**times, size[1] / 2**times


# --- the table -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recipe:
    """A way to make small pixels of an image; with `halved`, large JPEGs are decoded small."""

    exact: Callable[[np.ndarray, int], np.ndarray]  # image, resolution
    halved: Callable[[np.ndarray, int, Size, int], np.ndarray] | None = None  # see shrink_halved


RECIPES = {
    "box": Recipe(box),
    "adm": Recipe(adm),
    "edm": Recipe(edm),
    "as_is": Recipe(as_is),
    "box-fast": Recipe(box, box_halved),
    "adm-fast": Recipe(adm, adm_halved),
    "edm-fast": Recipe(edm, edm_halved),
}


def shrink(image: np.ndarray, recipe: str, resolution: int) -> np.ndarray:
    """Pixels (H, W, 3) uint8 -> (resolution, resolution, 3) uint8, by one of RECIPES.

    Raises DecompressionBombError (adm) and WrongSize (as_is).
    """
    return np.ascontiguousarray(RECIPES[recipe].exact(image, resolution))


def shrink_halved(
    image: np.ndarray, recipe: str, resolution: int, size: Size, times: int
) -> np.ndarray:
    """`shrink` of an image of `size` px, after both sides were halved `times` and rounded up.

    The whole image is size / 2**times, with a fraction of its last column and row. `recipe` is
    one of the fast ones.
    """
    shrink_small = RECIPES[recipe].halved
    assert shrink_small is not None
    return np.ascontiguousarray(shrink_small(image, resolution, size, times))
