"""Packing with all cores of the machine, and batches on the device."""

import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.bench import record
from pipeline.bench.gpu.scale import Scale, Unavailable
from pipeline.bench.loader import write_pack
from pipeline.bench.train import job_of
from pipeline.compute import gpus
from pipeline.config.schema import Config
from pipeline.data.reader import Mapped, Reader, Resident
from pipeline.flow.workload import draw
from pipeline.training.calibration import finish

BATCH = 256  # images
BATCHES = 20  # of a round at most
DISTINCT = 200  # photographs that are packed again and again
PACKED = 65_536  # images of the pack that batches are read from: 0.8 GB at 64 px


def packing(scale: Scale) -> dict[str, Any]:
    """Images/s from JPEG files to a pack, and to PNG files by a pool, one process per core.

    Raises Unavailable if a package is missing.
    """
    # Packages that a bare machine lacks
    try:
        import numba  # noqa: F401
        import simplejpeg  # noqa: F401

        from pipeline.bench import downsample
    except ImportError as error:
        raise Unavailable(f"the package {error.name} is not installed") from error
    # All in turn
    cores = gpus.cpu_cores()
    with tempfile.TemporaryDirectory() as folder:
        root, count = Path(folder), scale.files
        try:
            downsample.write_photographs(root, min(DISTINCT, count), count)
        except ImportError as error:
            raise Unavailable(f"the package {error.name} is not installed") from error
        cases = {
            "png": lambda: downsample.loop("png", root, count, cores),
            "exact": lambda: downsample.ours(root, count, cores),
            "fast": lambda: downsample.ours(root, count, cores, "data.recipe=box-fast"),
        }
        values = record.interleaved(cases, min(3, scale.rounds))
    # Against a pool of processes
    title = f"packing {count:,} photographs at {downsample.RESOLUTION} px, {cores} processes"
    return record.summary(title, "images/s", values, "png") | {"processes": cores}


def loading(scale: Scale) -> dict[str, Any]:
    """Images/s of batches on the device: pixels, flips, noise, times and labels of a step.

    From a pack on disk that no cache of a processor or GPU holds.
    """
    with tempfile.TemporaryDirectory() as folder:
        config = job_of(scale.words, min(BATCH, scale.largest), folder).config
        size = config.data.resolution
        images = np.random.default_rng(0).integers(0, 256, (PACKED, size, size, 3), np.uint8)
        pack, seed = write_pack(Path(folder), images), config.train.seed
        del images
        # Both ways in turn
        readers: dict[str, Reader] = {
            "memory-mapped": Mapped(pack, seed, scale.device, ahead=config.train.batch),
            "copied to the device": Resident(pack, seed, scale.device),
        }
        cases = {name: partial(rate, reader, config, scale) for name, reader in readers.items()}
        values = record.interleaved(cases, scale.rounds)
    # Against the memory map
    title = (
        f"batches of {config.train.batch} images on the device, of a pack of {PACKED:,}: "
        f"{' '.join(scale.words)}"
    )
    return record.summary(title, "images/s", values, "memory-mapped")


def rate(reader: Reader, config: Config, scale: Scale) -> float:
    """Images/s of one round, after a batch that is not timed."""
    # One batch unseen
    batch, count = config.train.batch, min(BATCHES, scale.steps * 4)
    positions = np.arange(batch, dtype=np.int64)
    draw(reader, config, positions)
    finish(scale.device)
    # Then the timed ones
    began = time.monotonic()
    for step in range(1, count + 1):
        draw(reader, config, positions + step * batch)
    finish(scale.device)
    return count * batch / (time.monotonic() - began)
