"""Batches of samples: finished ones are kept until all are there, then joined."""

import math
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from pipeline.base.errors import Stopped, UserError
from pipeline.base.files import atomic_stream, sha256_file, sha256_json
from pipeline.base.npy import load_npy, save_npy, write_header
from pipeline.base.progress import Progress
from pipeline.compute.distributed import Ranks, StopFlag
from pipeline.config.stages import stage_keys
from pipeline.drawing.tiles import save_grid
from pipeline.sampling.job import Job
from pipeline.sampling.network import Networks, class_labels, sample_images

GRID_ROWS, GRID_COLUMNS = 10, 10  # classes and samples of a class in grid.png


class Checksums(NamedTuple):
    """Hex sha256 of the files of weights; None: there is no guide."""

    # Checksums in hex
    weights: str
    guide: str | None


def checksums(job: Job, group: Ranks) -> Checksums:
    """The checksums on every rank; the first rank of each machine reads the files for them.

    Raises UserError on all ranks if the machines have other files, or the solver was fitted to
    other ones, or the sampler chosen with other ones.
    """
    # The same on every machine
    files = {"weights": job.weights.path} | ({"guide": job.guide.path} if job.guide else {})
    hashes = {name: sha256_file(path) for name, path in files.items()} if group.first_here else {}
    group.agree({f"sha256 of the {name}": digest for name, digest in hashes.items()})

    # Those of rank 0, on every rank
    digests = torch.zeros(len(files), 32, dtype=torch.uint8)
    if group.first:
        digests = torch.tensor([list(bytes.fromhex(digest)) for digest in hashes.values()]).byte()
    shared = [bytes(row.tolist()).hex() for row in group.sum(digests)]
    sums = Checksums(shared[0], shared[1] if job.guide is not None else None)
    if job.learned is not None and (job.learned.weights, job.learned.guide) != sums:
        raise UserError(
            "the fitted solver is one for other weights, or another guide: fit one for these by "
            "`python -m pipeline.solver`"
        )
    if job.choice is not None:
        job.choice.check(*sums)
    return sums


def shard_folder(job: Job, sums: Checksums) -> Path:
    """The folder of finished batches: its name is a hash of all that their content depends on."""
    keys = stage_keys(job.config, "sample")["sample"]
    work: dict[str, object] = {"weights": sums.weights, "guide": sums.guide, "keys": keys}
    work |= {"seed": job.seed, "batch": job.config.runtime.sample_batch}
    if job.learned is not None:
        work["solver"] = job.learned.to_json()
    if job.config.sample.adaptive and job.config.sample.guidance_edges:
        work["ends"] = "at the edges of guidance"  # earlier versions stepped across them
    return job.out / "shards" / sha256_json(work)[:12]


def shard_file(shards: Path, start: int) -> Path:
    """The finished batch whose first image has index `start`."""
    return shards / f"{start:08d}.npz"


def sample_shards(job: Job, networks: Networks, group: Ranks, shards: Path) -> float:
    """Sample this rank's share of the batches that are not in `shards` yet; returns images/s.

    Raises Stopped on every rank if a signal asks for it; finished batches stay.
    """
    # This rank's batches, by the index of their first image
    stop = StopFlag(group)
    num, size = job.config.sample.num, job.config.runtime.sample_batch
    starts = list(range(0, num, size))[group.rank :: group.world]
    num_rounds = math.ceil(num / (size * group.world))  # the same on all ranks, for the stop flag

    # Batches of an earlier run
    num_kept = sum(shard_file(shards, start).exists() for start in range(0, num, size))
    num_before = min(num, size * num_kept)
    progress = Progress("sample", num, job.config.runtime.progress_seconds, num_before)

    # Those still missing
    num_made = 0
    for turn in range(num_rounds):
        if turn < len(starts) and not shard_file(shards, starts[turn]).exists():
            images, evaluations = sample_shard(job, networks, starts[turn], group.device)
            with atomic_stream(shard_file(shards, starts[turn])) as stream:
                np.savez(stream, images=images, evaluations=evaluations)
            num_made += len(images)
        if group.first and progress.due():
            progress.show(min(num_before + num_made * group.world, num))
        if stop.agree()[0] and turn < num_rounds - 1:
            raise Stopped("finished batches are kept; the same command resumes")
    return num_made / (time.monotonic() - progress.start_time)


def sample_shard(
    job: Job, networks: Networks, start: int, device: torch.device
) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (B,H,W,3) from index `start` on, and the network evaluations (B,) of each.

    The last batch is filled up with its last image, and the surplus is dropped: networks round
    alike only in batches of one size. It is not if it is the only batch, which it would make as
    expensive as a full one, nor with an adaptive solver, whose batches shrink anyway.
    """
    # The images that are kept
    sample, size = job.config.sample, job.config.runtime.sample_batch
    count = min(size, sample.num - start)
    index = np.arange(start, start + count, dtype=np.int64)

    # A full batch
    if start > 0 and not sample.adaptive:
        index = np.pad(index, (0, size - count), mode="edge")
    images, evaluations = sample_images(job, networks, index, device)
    return images[:count], evaluations[:count]


def join_images(job: Job, shards: Path) -> np.ndarray:
    """Stream the shards into images.npy; returns the network evaluations of each image (N,)."""
    # Size of the file
    num, batch = job.config.sample.num, job.config.runtime.sample_batch
    size = job.weights.data.resolution
    evaluations = []

    # Batch after batch
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
    labels = class_labels(job, np.arange(job.config.sample.num, dtype=np.int64))
    save_npy(job.out / "labels.npy", labels)
    images, classes = load_npy(job.out / "images.npy"), job.weights.data.classes
    save_grid(job.out / "grid.png", images, labels, classes, GRID_ROWS, GRID_COLUMNS)
    return evaluations
