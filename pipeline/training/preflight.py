"""Checks by rank 0 of a training run before its first step."""

import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from pipeline.base.errors import UserError
from pipeline.training import checkpoint, snapshot_files, start_weights
from pipeline.training.identity import differences, identity_keys
from pipeline.training.job import Job

MOST_DIFFERENCES = 8  # named in one message


def check(job: Job) -> dict[str, Any] | None:
    """The newest readable checkpoint, or None if the run begins anew.

    Raises UserError if the data, the checkpoints or the disk do not do for this run.
    """
    job.workload.check()
    state = checkpoint.load_newest(job.scratch, job.steps)
    if state is not None:
        check_checkpoint(state, job)
    else:
        if job.start is not None:
            start_weights.check_tensors(job.start, job.workload)
        for line in earlier_trainings(job):
            print(f"train: starting at step 0; {line}", flush=True)
    check_disk(job)
    return state


def check_checkpoint(state: dict[str, Any], job: Job) -> None:
    """Raise UserError if a checkpoint is of another experiment or other data."""
    if different := unlike(state, job):
        raise UserError(
            f"{job.scratch} holds checkpoints of another experiment: {different}; "
            "give these keys as they are there, or another checkpoints=FOLDER"
        )


def unlike(state: dict[str, Any], job: Job) -> str:
    """The first few keys in which a checkpoint differs from this run; empty if in none."""
    # Both sides, alike
    ours = identity_keys(job.config) | {"pack": job.workload.about()["sha256"]}
    saved = state["config"] | {"pack": state["data"]}

    # The first few differences
    different = differences(saved, ours)
    more = len(different) - MOST_DIFFERENCES
    return ", ".join(different[:MOST_DIFFERENCES]) + (f" and {more} more" if more > 0 else "")


def earlier_trainings(job: Job) -> Iterator[str]:
    """A sentence about the newest checkpoint of each other training of the same run folder."""
    for folder in sorted((job.out / "checkpoints").glob("*/")):
        files = checkpoint.checkpoints(folder)
        if not files or folder.resolve() == job.scratch.resolve():
            continue
        with suppress(Exception):  # any damage shows as some exception, and this is only a hint
            state = checkpoint.load(files[-1])
            images = state["step"] * state["config"]["train"]["batch"]
            keys = unlike(state, job) or "another way to pair noise and images"
            hint = "" if job.start else f"; train.start={files[-1]} starts from its weights"
            yield (
                f"{folder} has {images:,} images of another training, which stay, with {keys}{hint}"
            )


def state_bytes(job: Job) -> int:
    """Bytes of one checkpoint, about."""
    return num_parameters(job) * job.config.train.num_copies * 4  # float32


def num_parameters(job: Job) -> int:
    """Parameters of the network."""
    with torch.device("meta"):
        net = job.workload.build()
    return sum(p.numel() for p in net.parameters())


def check_disk(job: Job) -> None:
    """Raise UserError if the disk has no space for all checkpoints that will lie there at once.

    They are runtime.keep_checkpoints, one that is being written, and the milestones, with stored
    averages beside them; those that lie there already count as space.
    """
    # Checkpoints kept at once
    runtime, train = job.config.runtime, job.config.train
    count = runtime.keep_checkpoints + 1 + train.num_milestones(runtime.milestone_images)

    # Space that they need
    size, stored = state_bytes(job), num_parameters(job) * train.snapshot_bytes
    kept = [*checkpoint.checkpoints(job.scratch), *snapshot_files.stored(job.snapshots).values()]
    need = count * size + stored - sum(path.stat().st_size for path in kept)

    # Space on the disk
    folder = nearest(job.scratch)
    free = shutil.disk_usage(folder).free
    if need > free:
        averages = f" and stored averages of {stored / 1e9:.2f} GB" if stored else ""
        remedy = ", a larger train.ema_snapshot_images" if stored else ""
        raise UserError(
            f"{count} checkpoints of {size / 1e9:.2f} GB{averages} need {need / 1e9:.2f} GB but "
            f"the disk of {folder} has {free / 1e9:.2f} GB free: make room, or give a smaller "
            f"runtime.keep_checkpoints{remedy} or another checkpoints=FOLDER"
        )


def nearest(folder: Path) -> Path:
    """`folder`, or the nearest above it that exists."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
