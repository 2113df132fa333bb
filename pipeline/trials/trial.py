"""One trial: a few samples of a network, made and compared with the reference in memory.

A batch of images lives until its features are in the sums, so no number of images is too large.
Each batch is made as rule `sample` makes it, whatever the number of ranks; the sums are float64.
"""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from pipeline.base.errors import Stopped
from pipeline.base.progress import Progress
from pipeline.compute import execution
from pipeline.compute.distributed import Ranks, StopFlag
from pipeline.config.stages import stage_keys
from pipeline.reporting.trials import Trial
from pipeline.sampling.job import Job
from pipeline.sampling.network import Networks
from pipeline.sampling.shards import Checksums, sample_shard
from pipeline.scoring.extractors import Extractor
from pipeline.scoring.keepers import Moments
from pipeline.scoring.references import Reference
from pipeline.scoring.scores import frechet


@dataclass(frozen=True)
class Judge:
    """The measure of all trials of a step, on all its ranks."""

    # What is compared
    extractor: Extractor
    reference: Reference
    # Who works, and until when
    group: Ranks
    stop: StopFlag

    @cached_property
    def identity(self) -> dict[str, object]:
        """All of it that a distance depends on, as JSON values."""
        digest = hashlib.sha256(self.reference.mu.tobytes())
        digest.update(self.reference.sigma.tobytes())
        return {
            "extractor": self.extractor.name,
            "extractor_weights": self.extractor.weights_sha256,
            "reference": digest.hexdigest(),
        }


def dependencies(job: Job, sums: Checksums, judge: Judge) -> dict[str, object]:
    """All that the trial of `job` depends on but rounding, as JSON values."""
    keys = stage_keys(job.config, "sample")["sample"]
    weights = {"weights": sums.weights, "guide": sums.guide}
    return {**judge.identity, **weights, "sample": keys, "seed": job.seed}


def measure(job: Job, networks: Networks, sums: Checksums, judge: Judge) -> Trial:
    """Sample `job` and compare: the same record on every rank.

    At least two samples. Raises Stopped on every rank if a signal asks for it.
    """
    # Sums over this rank's batches
    moments = Moments(judge.extractor.width, judge.extractor.device)
    num_evaluations = 0
    for images, evaluations in image_batches(job, networks, judge):
        add_features(moments, images, judge, job.config.runtime.feature_batch)
        num_evaluations += int(evaluations.sum())

    # Sums over all ranks
    group, reference = judge.group, judge.reference
    moments.finish(group)
    total = int(group.sum(torch.tensor(num_evaluations)))

    # The distance of rank 0, on every rank
    distance = torch.zeros(1, dtype=torch.float64)
    if group.first:
        distance += frechet(moments.mu, moments.sigma, reference.mu, reference.sigma)
    return record_of(job, sums, float(group.sum(distance)), total)


def image_batches(
    job: Job, networks: Networks, judge: Judge
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """This rank's batches: images uint8 (B,H,W,3), and the evaluations (B,) of each.

    Every rank must take them to the end. Raises Stopped on every rank if a signal asks for it.
    """
    # This rank's batches, by the index of their first image
    group, device = judge.group, judge.group.device
    num, size = job.config.sample.num, job.config.runtime.sample_batch
    starts = range(0, num, size)[group.rank :: group.world]
    progress = Progress("trial", num, job.config.runtime.progress_seconds)

    # As many rounds on each rank, for the stop flag
    for turn in range(math.ceil(num / (size * group.world))):
        if judge.stop.agree()[0]:
            raise Stopped("finished trials are kept; the same command resumes")
        if turn < len(starts):
            execution.set_float32(job.config.sample.precision, device)
            with execution.enough_memory(size, "runtime.sample_batch", device):
                yield sample_shard(job, networks, starts[turn], device)
        if group.first and progress.due():
            progress.show(min(num, (turn + 1) * size * group.world))


def add_features(moments: Moments, images: np.ndarray, judge: Judge, size: int) -> None:
    """Add the features of images uint8 (B,H,W,3), `size` at once and in float32, to `moments`."""
    execution.set_float32("fp32", judge.group.device)
    for start in range(0, len(images), size):
        moments.update(judge.extractor.features(images[start : start + size])[0])


def record_of(job: Job, sums: Checksums, distance: float, evaluations: int) -> Trial:
    """The record of a trial of `job`."""
    about, sample = job.weights.about, job.config.sample
    return Trial(
        weights=sums.weights,
        images=about.images,
        ema_halflife_images=about.ema_halflife_images,
        ema_width=about.ema_width,
        guidance=sample.guidance,
        interval=list(sample.guidance_interval),
        seed=job.seed,
        num=sample.num,
        distance=distance,
        evaluations=evaluations,
    )
