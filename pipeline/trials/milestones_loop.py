"""Milestones scored one after the other, on all ranks, and the curve of their scores."""

import json
import os
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.base import locks
from pipeline.base.errors import Stopped, UserError
from pipeline.base.files import atomic_stream, sha256_file
from pipeline.base.text import number
from pipeline.compute.distributed import StopFlag, ranks
from pipeline.config.samplers import sampler_name
from pipeline.config.stages import write_config
from pipeline.drawing.milestones_chart import milestones_chart
from pipeline.reporting.milestones import CURVE, PICTURE, MilestoneRow, write_milestones
from pipeline.sampling import job as sampling
from pipeline.sampling.network import build
from pipeline.sampling.shards import Checksums
from pipeline.scoring.extractors import check_weights, load_extractor
from pipeline.scoring.kinds import KINDS
from pipeline.training.milestones import Milestone, Run
from pipeline.trials.milestones_job import Job
from pipeline.trials.points import Points
from pipeline.trials.trial import Judge

POLL_S = 5.0  # seconds between two looks at a training that is watched


def work(job: Job) -> None:
    """Score the milestones on every rank; rank 0 writes the files."""
    with ExitStack() as stack:
        # One at a time
        if os.environ.get("RANK", "0") == "0":
            stack.enter_context(locks.locked(job.out))
            write_config(job.out, job.config, "milestones")
        device, join_seconds = job.config.runtime.device, job.config.launch.join_seconds
        group = stack.enter_context(ranks(device, job.identity, join_seconds))

        # What measures
        settings = job.config.evaluate
        extractor = load_extractor(settings.extractor, settings.weights, group.device)
        group.agree({"sha256 of the extractor": extractor.weights_sha256})
        check_weights(job.reference, extractor, job.reference_file)
        points = Points(job.out / "points", Judge(extractor, job.reference, group, StopFlag(group)))

        # One after the other
        guide = sha256_file(job.guide.path) if job.guide else None
        rows: dict[int, MilestoneRow] = {}
        paused = False
        while score_new(job, points, guide, rows):
            paused = group.first and note_pause(job.run, paused)
            wait(points.judge)
        if group.first:
            close(job, [rows[images] for images in sorted(rows)])
        group.barrier()


def score_new(job: Job, points: Points, guide: str | None, rows: dict[int, MilestoneRow]) -> bool:
    """Add the row of each milestone that has none, on every rank; whether more are to come.

    `guide`: hex sha256 of the guide. Raises UserError if none is there and none is waited for.
    """
    # What rank 0 sees, the end first
    group, seen = points.judge.group, ""
    if group.first:
        ended = job.run.end() is not None
        there = [[m.images, str(m.path)] for m in job.run.reached()]
        seen = json.dumps({"ended": ended, "there": there})
    state = json.loads(group.share(seen))
    if not state["there"] and not job.watch:
        raise UserError(
            f"the training in {job.run.folder} has no milestone yet: give watch=true to wait for "
            "it, or set runtime.milestone_images before it is started"
        )

    # Their scores
    for milestone in (Milestone(images, Path(path)) for images, path in state["there"]):
        if milestone.images not in rows:
            rows[milestone.images] = score(job, points, guide, milestone)
            if group.first:
                write(job, [rows[images] for images in sorted(rows)])
    return job.watch and not state["ended"]


def score(job: Job, points: Points, guide: str | None, milestone: Milestone) -> MilestoneRow:
    """The score of a milestone on every rank: the kept one, or a new one."""
    samples = job.sampling(milestone)
    sums = Checksums(job.run.sha256(milestone), guide)
    networks = partial(networks_of, job, samples, milestone, points)
    trial = points.trial(samples, sums, networks)
    if points.judge.group.first:
        text = f"{trial.distance:.4g} at {milestone.images:,} images seen"
        print(f"milestones: {text}", flush=True)
    return MilestoneRow(
        images=milestone.images,
        distance=trial.distance,
        label=f"Fréchet distance, {KINDS[job.config.evaluate.extractor].title}",
        num=trial.num,
        seed=trial.seed,
        sampler=sampler_name(job.config.sample),
    )


def networks_of(job: Job, samples: sampling.Job, milestone: Milestone, points: Points) -> Any:
    """The network of a milestone, and its guide."""
    return build(samples, points.judge.group, job.run.tensors(milestone))


def note_pause(run: Run, noted: bool) -> bool:
    """Whether no process trains before the training's end; said once, unless `noted`."""
    paused = not locks.is_held(run.scratch) and run.end() is None
    if paused and not noted:
        print(
            f"waiting: nothing trains in {run.folder} now: start that training again, or stop "
            f"this process with kill -TERM {os.getpid()}",
            flush=True,
        )
    return paused


def wait(judge: Judge) -> None:
    """Wait a little, on every rank; raises Stopped on all of them if a signal asks for it."""
    end = time.monotonic() + POLL_S
    while time.monotonic() < end:
        time.sleep(0.2)
    if judge.stop.agree()[0]:
        raise Stopped("finished milestones are kept; the same command resumes")


def write(job: Job, rows: list[MilestoneRow]) -> None:
    """Write the curve and its picture (rank 0)."""
    last, num = rows[-1], job.reference.num_images
    real = f"{'' if num is None else f'{num:,} '}real images"  # other programs' files do not say
    protocol = f"{last.num:,} samples of {last.sampler} with seed {last.seed}, against {real}"
    with atomic_stream(job.out / PICTURE) as stream:
        title = f"{job.config.experiment}, {job.record.name}: {last.label}"
        stream.write(milestones_chart(title, rows, protocol))
    write_milestones(job.out / CURVE, rows)


def close(job: Job, rows: list[MilestoneRow]) -> None:
    """Say what was scored, and what to set if there was nothing but the end."""
    best = min(rows, key=lambda row: row.distance)
    print(
        f"milestones: {len(rows)} scored, the best {number(best.distance)} at {best.images:,} "
        f"images seen: {job.out}",
        flush=True,
    )
    if len(rows) == 1:
        power = job.run.config.train.ema == "power"
        key = "train.ema_snapshot_images" if power else "runtime.milestone_images"
        print(
            f"note: the training in {job.run.folder} kept weights at one moment alone: set {key} "
            "before the training is started",
            flush=True,
        )
