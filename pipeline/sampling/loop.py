"""Sampling on every rank, from the files of weights to the folder of samples."""

import os
import shutil
import time
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from pipeline.base import locks
from pipeline.compute import execution
from pipeline.compute.distributed import ranks
from pipeline.config.samplers import notes, sampler_name
from pipeline.config.stages import stage_keys, write_config
from pipeline.data.reader import ROUNDING
from pipeline.reporting.records import SampleAbout, SelectionAbout, StartAbout, TrainAbout
from pipeline.reporting.trials import Choice
from pipeline.sampling.job import Job
from pipeline.sampling.network import Networks, build, save_strip
from pipeline.sampling.shards import Checksums, checksums, collect, sample_shards, shard_folder


class Speed(NamedTuple):
    """How long it took, on what."""

    # How fast
    images_per_s: float  # 0: all images were there already
    seconds: float  # wall time
    # On what
    world_size: int
    device: torch.device


def work(job: Job) -> None:
    """Sample on every rank; rank 0 writes the files of `job.out`."""
    # One run per folder
    start_time = time.monotonic()
    first = os.environ.get("RANK", "0") == "0"
    with ExitStack() as stack:
        if first:
            stack.enter_context(locks.locked(job.out))
            write_config(job.out, job.config, "sample")
        device, join_seconds = job.config.runtime.device, job.config.launch.join_seconds
        group = stack.enter_context(ranks(device, job.identity, join_seconds))

        # Work that is left
        sums = checksums(job, group)
        shards = shard_folder(job, sums)
        batch = job.config.runtime.sample_batch

        # The images
        with execution.enough_memory(batch, "runtime.sample_batch", group.device):
            networks = build(job, group)
            for note in notes(job.config.sample) if group.first else ():
                print(f"note: {note}", flush=True)
            rank_rate = sample_shards(job, networks, group, shards)

        # Speed of all ranks
        rate = float(group.mean(torch.tensor(rank_rate, device=group.device))) * group.world
        group.barrier()
        if group.first:
            seconds = time.monotonic() - start_time
            finish(job, networks, shards, sums, Speed(rate, seconds, group.world, group.device))
        group.barrier()


def finish(job: Job, networks: Networks, shards: Path, sums: Checksums, speed: Speed) -> None:
    """Write the declared outputs, sample.json the last, and remove the shards (rank 0).

    An older sample.json is removed first, so that it never stands beside images that it does not
    describe, and so are files that a killed run left half-written.
    """
    for old in [job.out / "sample.json", *job.out.glob(".*.tmp")]:
        old.unlink(missing_ok=True)
    evaluations = collect(job, shards)
    save_strip(job, networks, speed.device)
    describe(job, sums, evaluations, speed).write(job.out / "sample.json")
    shutil.rmtree(shards.parent)
    print(f"sample: {job.config.sample.num:,} images in {speed.seconds:.0f} s, {job.out}")


def selection_of(choice: Choice) -> SelectionAbout:
    """The choice by trials, as the samples' description has it."""
    return SelectionAbout(tries=len(choice.tries), metric=choice.metric, extractor=choice.extractor)


def describe(job: Job, sums: Checksums, evaluations: np.ndarray, speed: Speed) -> SampleAbout:
    """The content of sample.json; `evaluations` (N,) are those of each image."""
    keys, about = job.config.sample, job.weights.about
    start = {"start": StartAbout.parse(about.start, job.weights.path)} if about.start else {}
    chosen = {} if job.choice is None else {"selection": selection_of(job.choice)}

    # Sampler and its keys
    return SampleAbout(
        sampler=sampler_name(keys),
        config=stage_keys(job.config, "sample"),
        **chosen,
        seed=job.seed,
        num=keys.num,
        guidance=keys.guidance,
        precision=keys.precision,
        rounding=ROUNDING,
        # Cost of an image
        nfe_mean=float(evaluations.mean()),
        nfe_max=int(evaluations.max()),
        # Origin of the weights
        weights_sha256=sums.weights,
        guide_sha256=sums.guide,
        train=TrainAbout(
            images=about.images,
            gpu_hours=about.gpu_hours,
            config=about.config,
            torch=about.torch,
            **start,
        ),
        data=job.weights.data,
        # Speed of the run
        images_per_s=speed.images_per_s or None,
        seconds=speed.seconds,
        world_size=speed.world_size,
        device=torch.cuda.get_device_name() if speed.device.type == "cuda" else "CPU",
    )
