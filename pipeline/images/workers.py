"""Image files -> rows of small pixels over worker processes, in order."""

import ctypes
import itertools
import multiprocessing
import os
import signal
import threading
import warnings
from collections import Counter, deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.context import BaseContext
from pathlib import Path
from tempfile import gettempdir

import numpy as np

from pipeline.base.errors import UserError
from pipeline.config.schema import Config
from pipeline.images.decode import Decoded, decode
from pipeline.images.resample import prepare
from pipeline.images.sources.base import Item, Stretch
from pipeline.images.sources.reading import read_all
from pipeline.images.spool import Written, write_rows

AHEAD = 3  # batches waiting per worker


@dataclass(frozen=True)
class PackFormat:
    """The small pixels that are made of images."""

    recipe: str  # one of RECIPES
    resolution: int  # px, both axes


@dataclass(frozen=True)
class Batch:
    """Consecutive images of one stretch."""

    # Place of the images
    first: int  # images of the source before them
    start: int  # images of the stretch before them
    # The images
    items: list[Item]
    stretch: Stretch
    last: bool  # of its stretch


def split(stretch: Stretch, first: int, size: int) -> Iterable[Batch]:
    """The batches of a stretch whose first image is image `first` of the source."""
    for start in range(0, len(stretch.items), size):
        items = stretch.items[start : start + size]
        last = start + size >= len(stretch.items)
        yield Batch(first + start, start, items, stretch, last)


@dataclass(frozen=True)
class Shrunk:
    """The outcome of several images."""

    # What they became
    pixels: np.ndarray  # (n, resolution, resolution, 3) uint8; 0 if there is a problem
    problems: dict[int, str]  # place -> why there are no pixels
    # For the manifest
    traits: Counter[str]
    sizes: Counter[str]  # <width>x<height> before, px


def decode_items(items: Sequence[Item], pack_format: PackFormat) -> Shrunk:
    """Read and shrink several images; their files' warnings are not shown."""
    # Nothing done so far
    pixels = np.zeros(
        (len(items), pack_format.resolution, pack_format.resolution, 3), dtype=np.uint8
    )
    problems: dict[int, str] = {}
    traits: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    # Image by image
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for place, (item, content) in enumerate(zip(items, read_all(items), strict=True)):
            decoded = decode_item(item, content, pack_format)
            if decoded.pixels is None:
                problems[place] = decoded.problem
            else:
                pixels[place] = decoded.pixels
            if decoded.traits:
                traits.update(decoded.traits)
            if decoded.size:
                sizes["{}x{}".format(*decoded.size)] += 1
    return Shrunk(pixels, problems, traits, sizes)


def decode_item(
    item: Item, content: bytes | np.ndarray | OSError, pack_format: PackFormat
) -> Decoded:
    """Shrink one image that was read, or could not be."""
    if isinstance(content, OSError):
        reason = content.strerror or content  # without the path
        return Decoded(None, problem=f"{type(content).__name__}: {reason}")
    return decode(content, item.name, pack_format.recipe, pack_format.resolution)


def decode_into(
    rows_file: Path, pack_format: PackFormat, first: int, items: Sequence[Item]
) -> Written:
    """Read and shrink several images into the rows from `first` on."""
    shrunk = decode_items(items, pack_format)
    digests = write_rows(rows_file, first, shrunk.pixels)
    return Written(digests, shrunk.problems, shrunk.traits, shrunk.sizes)


def decode_all(
    batches: Iterable[Batch],
    pack_format: PackFormat,
    rows_file: Path,
    workers: int,
    start_method: str = "forkserver",
) -> Generator[tuple[Batch, Written], None, None]:
    """Every batch with its images decoded into its rows of a file that is there already.

    In order, by `workers` processes (1: by this one), which write the rows themselves, so that no
    pixels pass through the one process that all others wait for.

    Batches are taken from the iterable only a few per worker ahead, so that memory stays flat.
    Raises UserError if a worker dies or the disk is full.
    """
    prepare()
    # no pool for one process
    if workers == 1:
        keep_memory()
        for batch in batches:
            yield batch, decode_into(rows_file, pack_format, batch.first, batch.items)
        return
    # batches waiting at the pool, in order
    pool = ProcessPoolExecutor(workers, starting(start_method), start_worker)
    pending: deque[tuple[Batch, Future[Written]]] = deque()
    remaining = iter(batches)
    try:
        while True:
            for batch in itertools.islice(remaining, AHEAD * workers - len(pending)):
                work = pool.submit(decode_into, rows_file, pack_format, batch.first, batch.items)
                pending.append((batch, work))
            if not pending:
                return
            batch, future = pending.popleft()
            yield batch, future.result()
    except BrokenProcessPool as error:
        raise UserError(
            "a process that decodes images was killed, perhaps for lack of memory: "
            "run the same command again with fewer runtime.workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def starting(method: str) -> BaseContext:
    """How workers start: by the method, or by spawn if the fork server can have no socket."""
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload(["pipeline.images.preloaded"])
        try:
            forkserver.ensure_running()
        except OSError as error:  # such as a path of more than 107 characters
            print(
                f"downsample: runtime.start_method=spawn, since {gettempdir()} ($TMPDIR) cannot "
                f"hold the socket of forkserver ({error.strerror or error})",
                flush=True,
            )
            return multiprocessing.get_context("spawn")
    return context


def keep_memory() -> None:
    """Let malloc keep freed blocks of an image's size, if the C library is glibc.

    Otherwise it gives each back to the kernel and faults its pages in again for the next image: a
    third of the time of the recipes that crop.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-1, 64 << 20)  # M_TRIM_THRESHOLD, bytes
        mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD, bytes; glibc's largest


def start_worker() -> None:
    """Let the parent alone handle Ctrl-C, and end this process when the parent is gone."""
    # Signals go to the parent
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a forked one has the parent's handler
    keep_memory()

    def follow_parent() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=follow_parent, daemon=True).start()


def num_workers(config: Config, num_images: int | None, batch: int) -> int:
    """Processes to decode with: runtime.workers, no more than cores or batches there are."""
    cores = len(os.sched_getaffinity(0))
    batches = cores if num_images is None else num_images // batch
    return max(1, min(config.runtime.workers, cores, batches))
