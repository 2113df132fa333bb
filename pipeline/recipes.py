"""Published ways to make a small square image of a photograph, by Pillow's filters.

`shrink` is exact. `shrink_halved` comes close, for images that a JPEG decoder has halved already.
"""

import numpy as np
from PIL import Image
from PIL.Image import Resampling

MAX_PIXELS = 178_956_970  # of an image on the way: the bound above which Pillow opens none


def centre(image: Image.Image, width: int, height: int) -> Image.Image:
    """The middle of an image; of an odd surplus, the larger half is cut off right and below."""
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def box(image: Image.Image, resolution: int) -> Image.Image:
    """Both axes squashed by a box filter (Chrabaszcz et al. 2017: downsampled ImageNet)."""
    return image.resize((resolution, resolution), Resampling.BOX)


def adm(
    image: Image.Image, resolution: int, part: tuple[float, float] | None = None
) -> Image.Image:
    """Halved while twice too large, short side to `resolution`, centre crop.

    The recipe of Dhariwal & Nichol 2021. `part`: width and height of what counts of the image,
    from its upper left corner, px; None: all of it. Raises DecompressionBombError where the image
    before the crop would have more than MAX_PIXELS.
    """
    width, height = (int(side) for side in part or image.size)
    area = (0.0, 0.0, *part) if part else None
    while min(width, height) >= 2 * resolution:
        width, height = width // 2, height // 2
        image, area = image.resize((width, height), Resampling.BOX, area), None
    scale = resolution / min(width, height)
    size = round(width * scale), round(height * scale)
    if size[0] * size[1] > MAX_PIXELS:
        raise Image.DecompressionBombError(
            f"{width} x {height} px is too elongated for the recipe adm, "
            f"which would make {size[0]} x {size[1]} px of it"
        )
    return centre(image.resize(size, Resampling.BICUBIC, area), resolution, resolution)


def edm(image: Image.Image, resolution: int) -> Image.Image:
    """The largest centred square, by a Lanczos filter (Karras et al. 2022: center-crop)."""
    side = min(image.size)
    square = centre(image, side, side)
    return square.resize((resolution, resolution), Resampling.LANCZOS)


RECIPES = {"box": box, "adm": adm, "edm": edm}


def shrink(image: Image.Image, recipe: str, resolution: int) -> np.ndarray:
    """An RGB image -> pixels (resolution, resolution, 3) uint8, by one of RECIPES.

    Raises DecompressionBombError (adm).
    """
    return np.asarray(RECIPES[recipe](image, resolution))


def shrink_halved(
    image: Image.Image, recipe: str, resolution: int, size: tuple[int, int], times: int
) -> np.ndarray:
    """`shrink` of an image of `size` px, after both sides were halved `times` and rounded up.

    What counts of `image` is size / 2**times, with a fraction of its last column and row.
    """
    width, height = (side / 2**times for side in size)
    target = (resolution, resolution)
    if recipe == "adm":
        return np.asarray(adm(image, resolution, (width, height)))
    if recipe == "box":  # Pillow's box counts whole pixels only: too coarse, for so few of them
        return np.asarray(image.resize(target, Resampling.HAMMING, (0, 0, width, height)))
    side = min(width, height)
    left, top = ((length - min(size)) // 2 / 2**times for length in size)
    square = (left, top, left + side, top + side)
    return np.asarray(image.resize(target, Resampling.LANCZOS, square))
