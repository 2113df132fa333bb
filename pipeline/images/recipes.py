"""Published ways to make a small square image of a photograph, by Pillow's filters.

`shrink` is exact. `shrink_halved` comes close, for images that a JPEG decoder has halved already.
Images are arrays (H, W, 3) uint8.
"""

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

    The recipe of Dhariwal & Nichol 2021. `part`: width and height of what counts of the image,
    from its upper left corner, px; None: all of it. Raises DecompressionBombError where the image
    before the crop would have more than MAX_PIXELS.
    """
    width, height = (int(side) for side in part or (image.shape[1], image.shape[0]))
    area: Box | None = (0.0, 0.0, *part) if part else None
    while min(width, height) >= 2 * resolution:
        width, height = width // 2, height // 2
        image, area = resample(image, width, height, BOX, area), None
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


RECIPES = {"box": box, "adm": adm, "edm": edm}


def shrink(image: np.ndarray, recipe: str, resolution: int) -> np.ndarray:
    """Pixels (H, W, 3) uint8 -> (resolution, resolution, 3) uint8, by one of RECIPES.

    Raises DecompressionBombError (adm).
    """
    return np.ascontiguousarray(RECIPES[recipe](image, resolution))


def shrink_halved(
    image: np.ndarray, recipe: str, resolution: int, size: tuple[int, int], times: int
) -> np.ndarray:
    """`shrink` of an image of `size` px, after both sides were halved `times` and rounded up.

    What counts of `image` is size / 2**times, with a fraction of its last column and row.
    """
    width, height = (side / 2**times for side in size)
    if recipe == "adm":
        return np.ascontiguousarray(adm(image, resolution, (width, height)))
    if recipe == "box":  # Pillow's takes whole pixels, those of the image before it was halved
        area = (0.0, 0.0, width, height)
        return resample(image, resolution, resolution, AREA, area, grain=2**times)
    side = min(width, height)
    left, top = ((length - min(size)) // 2 / 2**times for length in size)
    square = (left, top, left + side, top + side)
    return resample(image, resolution, resolution, LANCZOS, square)


@dataclass(frozen=True)
class Recipe:
    """What makes small pixels of an image: see pipeline/images/recipes.py."""

    name: str
    resolution: int  # px
    fast: bool
