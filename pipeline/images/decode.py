"""One image file -> small pixels.

Pixels are those of `shrink(Image.open(f).convert("RGB"), recipe, resolution)`, byte for byte;
EXIF orientation is left alone. Ordinary JPEGs are decoded by simplejpeg, in half of Pillow's time,
everything else by Pillow.
"""

import io
import itertools
import platform
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from pipeline.base.errors import UserError
from pipeline.images.formats import FORMATS, JPEG_SUFFIXES, value_problem
from pipeline.images.recipes import MAX_PIXELS, RECIPES, WrongSize, shrink, shrink_halved

EXIF_ORIENTATION = 0x0112
TRAITS = ("grey", "cmyk", "exif_rotated", "misnamed", "alpha")  # counted in the manifest
GREY_MODES = {"1", "L", "LA"}

HUFFMAN_FRAMES = {0xC0, 0xC1, 0xC2}  # markers that start a frame: baseline, extended, progressive
FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # all such markers; others are arithmetic

# Segments of a header in which Pillow finds nothing to refuse or to tell, and that libjpeg checks:
# Huffman tables, restart interval, comment; and two that are looked at: quantisation tables, JFIF.
PASSED_OVER, TABLES, JFIF, SCAN = {0xC4, 0xDD, 0xFE}, 0xDB, 0xE0, 0xDA
TABLE, JFIF_LENGTH, FRAME_LENGTH = 65, 16, 17  # bytes, the frame's with 3 components

# Fast decoding: only if both sides are at least so many times the resolution; and how often they
# are halved at most, since a JPEG's blocks of 8 x 8 pixels become 1 x 1.
FAST_RATIO, MAX_HALVINGS = 4, 3


def versions() -> dict[str, str]:
    """Versions of everything that may change a pixel."""
    packages = ("pillow", "simplejpeg", "numba", "numpy")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


@dataclass(frozen=True)
class Decoded:
    """The result of one image file: pixels (res, res, 3) uint8, or why there are none."""

    # The pixels
    pixels: np.ndarray | None
    traits: tuple[str, ...] = ()  # of TRAITS
    # About the file
    problem: str = ""
    size: tuple[int, int] | None = None  # width and height before, px; None without pixels


def traits_of(image: Image.Image, name: str) -> tuple[str, ...]:
    """The oddities of an opened image file, for the manifest."""
    # One test per trait
    jpeg = name.lower().endswith(JPEG_SUFFIXES)
    has = (
        image.mode in GREY_MODES,
        image.mode == "CMYK",
        is_turned(image),
        jpeg and image.format not in ("JPEG", "MPO"),
        hides_colours(image),
    )
    return tuple(itertools.compress(TRAITS, has))


def hides_colours(image: Image.Image) -> bool:
    """Whether some pixels are transparent: without transparency, colours show that nobody saw."""
    if not image.has_transparency_data:
        return False
    alpha = np.asarray(image.convert("RGBA"))[:, :, 3]
    return bool((alpha < 255).any())


def is_turned(image: Image.Image) -> bool:
    """Whether an opened file says that a viewer should turn it."""
    if image.format == "JPEG" and not image.info.keys() & {"exif", "xmp"}:
        return False  # as getexif would find out, which takes longer
    try:
        return image.getexif().get(EXIF_ORIENTATION, 1) != 1
    except Exception:  # damaged EXIF raises many kinds, and the pixels do not need it
        return False


def frame_marker(data: bytes) -> int:
    """The marker that says how a JPEG is coded, or -1 if its header is not in good order."""
    start = 2
    while len(segment := data[start : start + 4]) == 4 and segment[0] == 0xFF:
        if segment[1] in FRAMES:
            return segment[1]
        start += 2 + int.from_bytes(segment[2:])
    return -1


def plain_size(data: bytes) -> tuple[int, int] | None:
    """Width and height of a JPEG that Pillow need not open, as nearly all are; None for others.

    Its header is in good order, has 3 components of 8 bits, and no EXIF, profile or other data of
    an application.
    """
    size, start = None, 2
    while len(segment := data[start : start + 10]) == 10 and segment[0] == 0xFF:
        marker, length = segment[1], int.from_bytes(segment[2:4])
        # the pixels begin: the header is complete
        if marker == SCAN:
            return size if data.startswith(b"\xff\xd8\xff") else None
        # the frame, with the size of the image
        if marker in HUFFMAN_FRAMES and length == FRAME_LENGTH and segment[4] == 8 and not size:
            height, width = int.from_bytes(segment[5:7]), int.from_bytes(segment[7:9])
            size = (width, height) if width * height <= MAX_PIXELS else None
        elif not (
            marker in PASSED_OVER
            or (marker == TABLES and (length - 2) % TABLE == 0 and segment[4] < 16)
            or (marker == JFIF and length == JFIF_LENGTH)
        ):
            return None
        start += 2 + length
    return None


def is_plain_jpeg(image: Image.Image, data: bytes) -> bool:
    """Whether simplejpeg makes Pillow's pixels of this file, or says that it cannot.

    Of 4 components it would not; with arithmetic coding, there are files that only Pillow refuses.
    """
    three = isinstance(image, JpegImageFile) and image.mode == "RGB"
    return three and frame_marker(data) in HUFFMAN_FRAMES


def halvings(size: tuple[int, int], resolution: int) -> int:
    """How often a fast decoder halves an image of that size: its sides stay >= `resolution`."""
    if min(size) < FAST_RATIO * resolution:
        return 0
    return max(k for k in range(MAX_HALVINGS + 1) if min(size) >> k >= resolution)


def turbo_pixels(data: bytes, size: tuple[int, int], times: int) -> np.ndarray | None:
    """A plain JPEG's pixels (H, W, 3), both sides halved `times` (rounded up) while decoding.

    None if anything at all is wrong with the file: Pillow then decides what becomes of it.
    """
    width, height = (-(-side >> times) for side in size)
    least = {"min_width": width, "min_height": height} if times else {}
    try:
        pixels = simplejpeg.decode_jpeg(data, "RGB", strict=True, **least)
    except ValueError:
        return None
    return pixels if pixels.shape == (height, width, 3) else None


def shrink_jpeg(
    data: bytes, size: tuple[int, int], recipe: str, resolution: int
) -> np.ndarray | None:
    """A plain JPEG of `size` px -> small pixels, or None as turbo_pixels."""
    times = halvings(size, resolution) if RECIPES[recipe].halved else 0
    pixels = turbo_pixels(data, size, times)
    if pixels is not None and times:
        return shrink_halved(pixels, recipe, resolution, size, times)
    return None if pixels is None else shrink(pixels, recipe, resolution)


def shrink_file(image: Image.Image, data: bytes, recipe: str, resolution: int) -> np.ndarray:
    """An opened file and its bytes -> pixels (resolution, resolution, 3) uint8."""
    if is_plain_jpeg(image, data):
        pixels = shrink_jpeg(data, image.size, recipe, resolution)
        if pixels is not None:
            return pixels
    return shrink(np.asarray(image.convert("RGB")), recipe, resolution)


def decode(data: bytes | np.ndarray, name: str, recipe: str, resolution: int) -> Decoded:
    """Shrink one image: a file's bytes, or pixels (H, W, 3) uint8 already.

    Damaged ones, decompression bombs and those whose values are not 0 to 255 come back as a
    problem. By the fast recipes, large JPEGs are shrunk in part while they are decoded, which
    changes the pixels a little. Raises UserError for an image of another size by the recipe as_is.
    """
    try:
        # pixels that need no decoder
        if isinstance(data, np.ndarray):
            return Decoded(shrink(data, recipe, resolution), size=(data.shape[1], data.shape[0]))
        # ordinary JPEGs, without Pillow
        if size := plain_size(data):
            pixels = shrink_jpeg(data, size, recipe, resolution)
            if pixels is not None:
                return Decoded(pixels, size=size)
        # everything else
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            if problem := value_problem(opened):
                return Decoded(None, problem=problem)
            traits = traits_of(opened, name)
            pixels = shrink_file(opened, data, recipe, resolution)
            return Decoded(pixels, traits, size=opened.size)
    except WrongSize as error:  # of a whole image, so that it is not left out
        raise UserError(
            f"{name} {error}: data.recipe=as_is takes images of data.resolution alone, so set "
            "data.resolution to their size, or choose a recipe that resizes them"
        ) from error
    except UnidentifiedImageError:  # its message holds an address in memory
        return Decoded(None, problem="no image of a known format")
    except Exception as error:  # Pillow raises many kinds for damaged files
        return Decoded(None, problem=f"{type(error).__name__}: {error}")
