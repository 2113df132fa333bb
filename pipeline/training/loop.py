"""A training run from its first step, or its newest checkpoint, to its files of weights."""

import os
from contextlib import nullcontext
from typing import Any

import torch
import torch._dynamo  # else by the first optimizer, in each of the ranks
from torch import Tensor

from pipeline.base import locks
from pipeline.base.errors import Stopped
from pipeline.base.progress import Progress, read_rows, step_of, write_rows
from pipeline.compute import execution
from pipeline.compute.distributed import Ranks, StopFlag, ranks
from pipeline.config.paths import weights_files
from pipeline.training import checkpoint, preflight, start_weights
from pipeline.training.curve import Mark, Metrics
from pipeline.training.job import Job
from pipeline.training.trainer import Trainer
from pipeline.training.weights_file import save_weights


def work(job: Job) -> None:
    """Train on every rank; rank 0 writes the files of `job.out`."""
    # One run per folder
    first = os.environ.get("RANK", "0") == "0"
    lock = locks.locked(job.scratch) if first else nullcontext()
    with lock:
        newest = preflight.check(job) if first else None
        # Training, all ranks
        device, join_seconds = job.config.runtime.device, job.config.launch.join_seconds
        with ranks(device, job.identity, join_seconds) as group:
            stop = StopFlag(group)
            trainer = Trainer(job, group)
            resume(trainer, newest)
            del newest
            memory = execution.enough_memory(
                trainer.micro, "runtime.micro_batch", group.device, job.workload.unit
            )
            with trainer.writer, memory:
                run(trainer, stop)
            # Weights of the run
            averages = trainer.averaged_weights()
            if first:
                finish(trainer, averages)
            group.barrier()


def resume(trainer: Trainer, newest: dict[str, Any] | None) -> None:
    """Go on from the checkpoint that rank 0 has read and checked; the other ranks read the same."""
    # The ranks' common step
    job, group = trainer.job, trainer.group
    step = shared_step(group, newest)
    if step == 0:
        begin(trainer)
        return
    if newest is None:
        # Each rank reads it
        newest = checkpoint.load(checkpoint.at_step(job.scratch, step))
    trainer.load_state(newest)
    if group.first:
        print(f"train: resuming from step {step:,} of {job.steps:,}", flush=True)


def begin(trainer: Trainer) -> None:
    """Take the weights that train.start names, if any; each rank reads the file."""
    start = trainer.job.start
    if start is None or start.path is None:  # without a file only if there is a checkpoint
        return
    about = start_weights.describe(start.path, start.sha256)
    trainer.begin(start_weights.read_tensors(start.path), about)
    if trainer.group.first:
        print(f"train: starting at step 0 from {start.path}, {about['weights']}", flush=True)


def shared_step(group: Ranks, newest: dict[str, Any] | None) -> int:
    """The step of rank 0's checkpoint, on every rank; 0 if there is none."""
    step = newest["step"] if group.first and newest is not None else 0
    return int(group.sum(torch.tensor(step, dtype=torch.int64)))


def run(trainer: Trainer, stop: StopFlag) -> None:
    """Step until the training length is reached or a signal asks to stop."""
    # Length of a row
    job, group, runtime = trainer.job, trainer.group, trainer.config.runtime
    batch = trainer.config.train.batch
    every = max(1, runtime.log_images // batch)
    metrics = Metrics(job.scratch, trainer.step, job.steps) if group.first else None
    # Progress and marks
    total, unit = job.steps * batch, job.workload.unit
    progress = Progress("train", total, runtime.progress_seconds, trainer.images, unit)
    saved = Mark(trainer.images)
    logged = Mark(trainer.images)
    if trainer.step == job.steps:  # a longer training has been here, but did not end here
        trainer.store_averages()
    while trainer.step < job.steps:
        trainer.train_step()
        last = trainer.step == job.steps
        # a row of the curve
        if trainer.step % every == 0 or last:
            row = trainer.row((trainer.images - logged.images) // batch, logged.seconds())
            logged = Mark(trainer.images)
            if metrics:
                metrics.add(row)
            if group.first and progress.due():
                progress.show(trainer.images, f"loss {row['loss']:.4f}")
        trainer.store_averages()
        # a checkpoint
        many = trainer.images - saved.images >= runtime.checkpoint_images
        late = saved.seconds() >= 60 * runtime.checkpoint_minutes
        stopping, saving = stop.agree(many or late or last or trainer.at_milestone())
        if saving or stopping:
            trainer.save()
            saved = Mark(trainer.images)
        # the end, if a signal asks for it
        if stopping and not last:
            trainer.writer.wait()
            trainer.group.barrier()  # nobody leaves before the checkpoint of rank 0 is whole
            raise Stopped(
                f"saved at step {trainer.step:,} of {job.steps:,}; the same command resumes"
            )
    trainer.writer.wait()
    if metrics:
        metrics.close()
        progress.show(trainer.images)


def finish(trainer: Trainer, averages: list[dict[str, Tensor]]) -> None:
    """Write the averaged weights, one file per half-life, and the curve (rank 0)."""
    # The curve
    job = trainer.job
    rows = [r for r in read_rows(job.scratch / "metrics.jsonl") if step_of(r) <= job.steps]
    write_rows(job.out / "curve.jsonl", rows)
    # One file per average
    files = weights_files(job.config.train)
    more: dict[str, Any] = {"gpu_hours": trainer.clock.seconds / 3600}
    if job.config.train.ema == "power":
        more |= {"snapshots": os.path.relpath(job.snapshots, job.out)}
    for weights, (average, name) in zip(averages, files.items(), strict=True):
        save_weights(job.out / name, weights, trainer.about(average, **more))
    # The closing line
    names = ", ".join(files.values())
    print(f"train: {trainer.images:,} {job.workload.unit}, {job.out}: {names}", flush=True)
