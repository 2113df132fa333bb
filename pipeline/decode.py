"""Image files -> small pixels: one file, or all of a set in order over worker processes.

Pixels are those of `Image.open(f).convert("RGB").resize((res, res), Image.BOX)`, byte for byte;
EXIF orientation is left alone.
"""

import io
import itertools
import multiprocessing
import os
import signal
import threading
import warnings
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from pipeline.errors import UserError
from pipeline.keys import Config
from pipeline.sources import ImageFile, ImageSet, read_image

BATCH = 16  # images a worker decodes at a time
EXIF_ORIENTATION = 0x0112
TRAITS = ("grey", "cmyk", "exif_rotated", "misnamed")  # counted in the manifest
# The formats of sources.IMAGE_SUFFIXES; others, such as EPS, may run programs.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
GREY_MODES = {"1", "L", "LA", "I", "I;16", "F"}


# --- one image ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Decoded:
    """What became of one image file: pixels (res, res, 3) uint8, or why there are none."""

    pixels: np.ndarray | None
    traits: tuple[str, ...] = ()  # of TRAITS
    problem: str = ""


def shrink(image: Image.Image, resolution: int) -> np.ndarray:
    """An image of any mode, both axes squashed to `resolution`: (res, res, 3) uint8."""
    size = (resolution, resolution)
    return np.asarray(image.convert("RGB").resize(size, Image.Resampling.BOX))


def traits_of(image: Image.Image, name: str) -> tuple[str, ...]:
    """What is odd about an opened image file, for the manifest."""
    try:
        turned = image.getexif().get(EXIF_ORIENTATION, 1) != 1
    except Exception:  # damaged EXIF raises many kinds, and the pixels do not need it
        turned = False
    jpeg = name.lower().endswith((".jpeg", ".jpg"))
    has = (
        image.mode in GREY_MODES,
        image.mode == "CMYK",
        turned,
        jpeg and image.format not in ("JPEG", "MPO"),
    )
    return tuple(itertools.compress(TRAITS, has))


def decode(place: Path, image: ImageFile, resolution: int) -> Decoded:
    """Read and shrink one image; damaged ones and decompression bombs come back as a problem."""
    try:
        with Image.open(io.BytesIO(read_image(place, image)), formats=FORMATS) as opened:
            traits = traits_of(opened, image.name)
            return Decoded(shrink(opened, resolution), traits)
    except UnidentifiedImageError:  # its message holds an address in memory
        return Decoded(None, problem="no image of a known format")
    except Exception as error:  # Pillow raises many kinds for damaged files
        reason = getattr(error, "strerror", None) or error  # without the path
        return Decoded(None, problem=f"{type(error).__name__}: {reason}")


def decode_batch(place: Path, images: tuple[ImageFile, ...], resolution: int) -> list[Decoded]:
    """`decode` for several images; their files' warnings are not shown."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [decode(place, image, resolution) for image in images]


# --- all images, in order ----------------------------------------------------------------------


def start_worker() -> None:
    """Let the parent alone handle Ctrl-C, and end this process when the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def follow_parent() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=follow_parent, daemon=True).start()


def batches(images: list[ImageFile]) -> Iterator[tuple[ImageFile, ...]]:
    """Consecutive images in tuples of BATCH."""
    rest = iter(images)
    while batch := tuple(itertools.islice(rest, BATCH)):
        yield batch


def decode_all(
    image_set: ImageSet, resolution: int, workers: int
) -> Generator[Decoded, None, None]:
    """Every image of the set, in order, decoded by `workers` processes (1: by this one).

    At most a few batches per worker are in memory. Raises UserError where a worker dies.
    """
    place, images = image_set.place, image_set.images
    if workers == 1:
        for batch in batches(images):
            yield from decode_batch(place, batch, resolution)
        return
    context = multiprocessing.get_context("spawn")  # fork is unsafe beside threads
    pool = ProcessPoolExecutor(workers, context, start_worker)
    pending: deque[Future[list[Decoded]]] = deque()
    try:
        for batch in batches(images):
            pending.append(pool.submit(decode_batch, place, batch, resolution))
            if len(pending) == 3 * workers:
                yield from pending.popleft().result()
        while pending:
            yield from pending.popleft().result()
    except BrokenProcessPool as error:
        raise UserError(
            "a process that decodes images was killed, perhaps for lack of memory: "
            "run the same command again with fewer runtime.workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def num_workers(config: Config, num_images: int) -> int:
    """Processes to decode with: runtime.workers, no more than cores or batches there are."""
    cores = len(os.sched_getaffinity(0))
    return max(1, min(config.runtime.workers, cores, num_images // BATCH))
