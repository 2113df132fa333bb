"""Pillow's resampling of RGB pixels, to the last bit, in a third of its time; and by areas.

Pillow copies an array into images of four bytes a pixel before it filters. Here the array is
filtered as it lies, by loops that numba compiles. The arithmetic is Pillow's: weights of 22
fractional bits, and each axis rounded to 8 bits before the other is filtered. The rows come first,
as in the published downsampled sets and in Pillow up to 12; Pillow 13 filters the columns of tall
images first, which changes about a quarter of their values. tests/images/test_resample.py compares
the two, an axis at a time.
"""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit
from numpy import int32, uintp

from pipeline.base.errors import UserError

BOX, BICUBIC, LANCZOS, AREA = range(4)
# Half the width of each filter, in pixels of the smaller image. AREA, which Pillow has not, is the
# box filter for few source pixels: those at the edge of a pixel count with the part that is in it.
SUPPORT = (0.5, 2.0, 3.0, 0.5)

ORDER = "rows first"  # of the axes; named in the manifest, since the bytes of a pack depend on it

BITS = 22  # fractional bits of a weight: 32, less 8 of a pixel, less 2 for sums outside [0, 1]
HALF = 1 << (BITS - 1)

Box = tuple[float, float, float, float]  # left, top, right, bottom, px


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` as machine code, which is kept for the next process if possible."""
    try:
        return njit(cache=True, boundscheck=False)(function)
    except RuntimeError:  # neither this folder nor the user's cache can be written to
        return njit(boundscheck=False)(function)


@compiled
def sinc(x: float) -> float:
    """sin(pi x) / (pi x)."""
    return math.sin(x * math.pi) / (x * math.pi) if x else 1.0


@compiled
def response(kind: int, x: float) -> float:
    """A filter's value at x, of [-support, support]. Bicubic: Keys 1981, with a = -0.5."""
    # Only AREA needs signs
    x = abs(x) if kind != BOX else x
    if kind == BOX:
        return 1.0 if -0.5 < x <= 0.5 else 0.0
    # Lanczos with three lobes
    if kind == LANCZOS:
        return sinc(x) * sinc(x / 3) if x < 3 else 0.0
    # Bicubic in two pieces
    if x < 1:
        return (1.5 * x - 2.5) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * -0.5 if x < 2 else 0.0


@compiled
def weigh(
    kind: int,
    support: float,
    length: int,
    start: float,
    scale: float,
    out: int,
    grain: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The source of each of `out` pixels: its first source pixel, how many, and their weights.

    `length`: source pixels along the axis; `start`: beginning of the filtered part; `scale`:
    source pixels per pixel; `grain` (AREA): each pixel's part of the source has its edges at
    multiples of 1 / grain, 0: anywhere. Weights are (out, most pixels) int32, 1 << BITS being 1.
    """
    # width of the filter
    width = max(scale, 1.0)
    reach = support * width
    most = math.ceil(reach) * 2 + 1
    firsts, counts = np.zeros(out, np.int64), np.zeros(out, np.int64)
    weights = np.zeros((out, most), np.int32)
    exact = np.zeros(most)
    for place in range(out):
        # the source pixels under the filter
        centre = start + (place + 0.5) * scale
        low, high = centre - reach, centre + reach
        if grain:
            low, high = int(low * grain + 0.5) / grain, int(high * grain + 0.5) / grain
        first = max(0, int(low if kind == AREA else low + 0.5))
        count = min(length, math.ceil(high) if kind == AREA else int(high + 0.5)) - first
        # their exact weights
        total = 0.0
        for tap in range(count):
            if kind == AREA:
                exact[tap] = min(tap + first + 1.0, high) - max(tap + first, low)
            else:
                exact[tap] = response(kind, (tap + first - centre + 0.5) * (1.0 / width))
            total += exact[tap]
        # weights of the same sum in whole numbers
        for tap in range(count):
            weight = exact[tap] / total if total else exact[tap]
            weights[place, tap] = int(weight * (1 << BITS) + (-0.5 if weight < 0 else 0.5))
        firsts[place], counts[place] = first, count
    return firsts, counts, weights


@compiled
def rounded(total: int | int32) -> int:
    """A weighted sum, with HALF in it, as a pixel."""
    return min(max(int(total) >> BITS, 0), 255)


@compiled
def across(
    rows: np.ndarray, firsts: np.ndarray, counts: np.ndarray, weights: np.ndarray, out: np.ndarray
) -> None:
    """Filter each row: rows (H, 3 W) uint8 -> out (H, 3 n) uint8, of interleaved RGB."""
    # Row by row
    for y in range(rows.shape[0]):
        row, small = rows[y], out[y]
        for place in range(uintp(len(firsts))):  # unsigned: numba then checks no negative index
            red = green = blue = int32(HALF)
            at = uintp(3) * uintp(firsts[place])
            for tap in range(uintp(counts[place])):
                weight = weights[place, tap]
                red += weight * int32(row[at])
                green += weight * int32(row[at + uintp(1)])
                blue += weight * int32(row[at + uintp(2)])
                at += uintp(3)
            to = uintp(3) * uintp(place)
            small[to] = rounded(red)
            small[to + uintp(1)] = rounded(green)
            small[to + uintp(2)] = rounded(blue)


@compiled
def down(
    rows: np.ndarray, firsts: np.ndarray, counts: np.ndarray, weights: np.ndarray, out: np.ndarray
) -> None:
    """Filter each column: rows (H, m) uint8 -> out (n, m) uint8."""
    # Column sums together
    width = uintp(rows.shape[1])
    sums = np.empty(width, np.int32)
    for place in range(len(firsts)):
        sums[:] = HALF
        for tap in range(counts[place]):
            weight, row = weights[place, tap], rows[firsts[place] + tap]
            for x in range(width):
                sums[x] += weight * int32(row[x])
        for x in range(width):
            out[place, x] = rounded(sums[x])


@functools.lru_cache(maxsize=512)
def taps(kind: int, length: int, start: float, stop: float, out: int, grain: int = 0) -> Any:
    """`weigh` of the part from `start` to `stop`, which Pillow holds in single precision."""
    low, high = np.float32(start), np.float32(stop)
    scale = float(high - low) / out
    return weigh(kind, SUPPORT[kind], length, float(low), scale, out, grain)


def resample(
    pixels: np.ndarray, width: int, height: int, kind: int, box: Box | None = None, grain: int = 0
) -> np.ndarray:
    """Pixels (H, W, 3) uint8 -> (height, width, 3) uint8, as Image.resize of one axis at a time.

    First along the rows, then along the columns; AREA the other way round, which is faster.
    `kind`: BOX, BICUBIC or LANCZOS, or AREA. `box`: the part of the image that counts; None: all
    of it. `grain`: see `weigh`.
    """
    # The part to resample
    rows, columns = pixels.shape[:2]
    left, top, right, bottom = box or (0, 0, columns, rows)

    def narrow(image: np.ndarray) -> np.ndarray:
        if (columns, left, right) == (width, 0, width):
            return image
        return filtered(
            across, image, taps(kind, columns, left, right, width, grain), len(image), width
        )

    def lower(image: np.ndarray) -> np.ndarray:
        if (rows, top, bottom) == (height, 0, height):
            return image
        return filtered(
            down, image, taps(kind, rows, top, bottom, height, grain), height, image.shape[1]
        )

    return narrow(lower(pixels)) if kind == AREA else lower(narrow(pixels))


def prepare() -> None:
    """Compile everything that `resample` needs, or load it; raises UserError on a full disk."""
    try:
        # the decoder's arrays and Pillow's, which cannot be written to; rows or columns first
        for writeable, kind in itertools.product((True, False), (BOX, AREA)):
            pixels = np.zeros((9, 9, 3), np.uint8)
            pixels.flags.writeable = writeable
            resample(pixels, 8, 8, kind)
    except (OSError, EOFError) as error:
        raise UserError(
            f"the compiled filters cannot be kept ({error}): make room on the disk of {__file__} "
            "and delete the __pycache__ beside it, or name another folder in NUMBA_CACHE_DIR"
        ) from error


def filtered(
    axis: Callable[..., None], image: np.ndarray, weights: Any, height: int, width: int
) -> np.ndarray:
    """An image filtered along one axis by `across` or `down`: (height, width, 3) uint8."""
    out = np.empty((height, width, 3), np.uint8)
    flat = np.ascontiguousarray(image).reshape(len(image), -1)
    axis(flat, *weights, out.reshape(height, -1))
    return out
