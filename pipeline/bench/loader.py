"""Images a second that one core loads: rows of a pack against a folder of PNG files.

Both ways read the same images in the same random order into uint8 batches (B,64,64,3); a third
case goes on to what a training step takes: float32 in [-1,1], half of the images mirrored. All
files lie in the page cache.
"""

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image

from pipeline.base.npy import save_npy
from pipeline.bench import record
from pipeline.data import pack
from pipeline.data.reader import Mapped, epoch_order, load_batch, rows_at

# What is promised
BAR = 50.0  # times the baseline's rate that `gathered` reaches
# What is loaded
SIZE, BATCH, SEED = 64, 256, 0  # px, images
IMAGES = 4096  # a pack of 50 MB: more than the caches hold


def photographs(num: int) -> np.ndarray:
    """uint8 (num,64,64,3): random crops of the photographs that scikit-image ships, scaled."""
    import skimage

    from pipeline.bench.photos import PHOTOS, random_crop

    folder = Path(skimage.__file__).parent / "data"
    photos = [Image.open(folder / file).convert("RGB") for file in PHOTOS.values()]
    rng = np.random.default_rng(SEED)
    crops = (random_crop(photos[k % len(photos)], 2 * SIZE, rng) for k in range(num))
    box = Image.Resampling.BOX
    return np.stack([np.asarray(crop.resize((SIZE, SIZE), box)) for crop in crops])


def write_pack(folder: Path, images: np.ndarray) -> pack.Pack:
    """A pack of `images` in `folder`, opened."""
    # Labels, hashes, record
    labels = np.arange(len(images), dtype=np.int64) % 2
    digests = (hashlib.sha256(array.tobytes()).hexdigest() for array in (images, labels))
    record = pack.Record(
        source="train", resolution=images.shape[1], recipe="box", classes=["a", "b"],
        num_images=len(images), sha256=pack.Hashes(images=next(digests), labels=next(digests)),
    )  # fmt: skip
    # Files of the pack
    save_npy(folder / "images.npy", images)
    save_npy(folder / "labels.npy", labels)
    record.write(folder / "manifest.json")
    return pack.open_pack(folder, record)


def write_pngs(folder: Path, images: np.ndarray) -> list[Path]:
    """A PNG file of each image; their paths in the order of the rows."""
    paths = [folder / f"{row:06d}.png" for row in range(len(images))]
    for path, pixels in zip(paths, images, strict=True):
        Image.fromarray(pixels).save(path)
    return paths


def decoded(paths: list[Path], positions: np.ndarray) -> np.ndarray:
    """uint8 (B,64,64,3): the images at `positions` of the run, decoded one by one."""
    batch = np.empty((len(positions), SIZE, SIZE, 3), dtype=np.uint8)
    for place, row in enumerate(rows_at(positions, SEED, len(paths))):
        with Image.open(paths[row]) as image:
            batch[place] = np.asarray(image)
    return batch


def rate(load: Callable[[np.ndarray], object], num: int, epochs: Iterator[int]) -> float:
    """Images per second of processor time over the next epoch; its order is computed in it."""
    # Nothing from before
    epoch_order.cache_clear()
    first = next(epochs) * num
    # Processor time alone
    began = time.process_time()
    for start in range(first, first + num, BATCH):
        load(np.arange(start, min(start + BATCH, first + num), dtype=np.int64))
    return num / (time.process_time() - began)


def cases(folder: Path, num: int) -> dict[str, Callable[[np.ndarray], Any]]:
    """The ways to load a batch by its positions, over the same `num` images."""
    images = photographs(num)
    paths = write_pngs(folder, images)
    reader = Mapped(write_pack(folder, images), SEED, torch.device("cpu"))
    return {
        "png": lambda positions: decoded(paths, positions),
        "gathered": lambda positions: reader.gather(positions)[0],
        "gathered, float and flip": lambda positions: load_batch(reader, positions, True)[0],
    }


@contextmanager
def one_thread() -> Iterator[None]:
    """torch computes in one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run(rounds: int = 9, num: int = IMAGES) -> dict[str, Any]:
    """The result (see pipeline.bench.record)."""
    # All ways in turn
    with TemporaryDirectory() as folder, one_thread():
        ways = cases(Path(folder), num)
        timed = {name: partial(rate, load, num, count()) for name, load in ways.items()}
        values = record.interleaved(timed, rounds)
    # Against PNG files
    title = f"loading {num:,} images of {SIZE} px in random order, batches of {BATCH}, one core"
    result = record.summary(title, "images per second of processor time", values, "png")
    return result | {"bars": [record.bar("gathered / png", result["ratio"]["gathered"], BAR)]}
