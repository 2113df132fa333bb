"""Batches of samples: finished ones are kept until all are there, then joined."""

import math
import time
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.base.errors import Stopped
from pipeline.base.files import atomic_stream, sha256_json
from pipeline.base.npy import load_npy, save_npy, write_header
from pipeline.base.progress import Progress
from pipeline.compute.distributed import Ranks, StopFlag
from pipeline.config.stages import stage_keys
from pipeline.drawing.tiles import save_grid
from pipeline.sampling.job import Job
from pipeline.sampling.network import Networks, sample_images


def shard_folder(job: Job) -> Path:
    """Where finished batches wait: named by all that their content depends on."""
    keys = stage_keys(job.config, "sample")["sample"]
    work: dict[str, Any] = {"weights": job.weights.sha256, "guide": job.guide_sha256, "keys": keys}
    work |= {"seed": job.seed, "batch": job.config.runtime.sample_batch}
    return job.out / "shards" / sha256_json(work)[:12]


def shard_file(shards: Path, start: int) -> Path:
    """The finished batch whose first image has index `start`."""
    return shards / f"{start:08d}.npz"


def sample_shards(job: Job, networks: Networks, group: Ranks, shards: Path) -> float:
    """Sample every batch that is not in `shards` yet, this rank's share; returns images/s."""
    stop = StopFlag(group)
    num, size = job.config.sample.num, job.config.runtime.sample_batch
    starts = list(range(0, num, size))[group.rank :: group.world]
    rounds = math.ceil(num / (size * group.world))  # the same on all ranks, for the stop flag
    kept = sum(shard_file(shards, start).exists() for start in range(0, num, size))
    there = min(num, size * kept)
    progress = Progress("sample", num, job.config.runtime.progress_seconds, there)
    made = 0
    for number in range(rounds):
        if number < len(starts):
            index = np.arange(starts[number], min(starts[number] + size, num), dtype=np.int64)
            path = shard_file(shards, starts[number])
            if not path.exists():
                images, evaluations = sample_images(job, networks, index, group.device)
                with atomic_stream(path) as stream:
                    np.savez(stream, images=images, evaluations=evaluations)
                made += len(index)
        if group.first and progress.due():
            progress.show(min(there + made * group.world, num))
        if stop.agree()[0] and number < rounds - 1:
            raise Stopped("finished batches are kept; the same command goes on")
    return made / (time.monotonic() - progress.start_time)


def join_images(job: Job, shards: Path) -> np.ndarray:
    """Stream the shards into images.npy; returns the network evaluations of each image (N,)."""
    num, batch = job.config.sample.num, job.config.runtime.sample_batch
    size = job.weights.record.resolution
    evaluations = []
    with atomic_stream(job.out / "images.npy") as stream:
        write_header(stream, (num, size, size, 3))
        for start in range(0, num, batch):
            with np.load(shard_file(shards, start), allow_pickle=False) as part:
                stream.write(np.ascontiguousarray(part["images"]).data)
                evaluations.append(part["evaluations"])
    return np.concatenate(evaluations)


def collect(job: Job, shards: Path) -> np.ndarray:
    """Write images, labels and grid from the shards (rank 0); returns the evaluations (N,)."""
    evaluations = join_images(job, shards)
    labels = job.labels(np.arange(job.config.sample.num, dtype=np.int64))
    save_npy(job.out / "labels.npy", labels)
    images, classes = load_npy(job.out / "images.npy"), job.weights.record.classes
    save_grid(job.out / "grid.png", images, labels, classes, GRID_ROWS, GRID_COLUMNS)
    return evaluations


GRID_ROWS, GRID_COLUMNS = 10, 10  # classes and samples of a class in grid.png
