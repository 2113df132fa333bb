"""Score over training: the distance of a few samples at each milestone of a training, and its end.

    python -m pipeline.milestones experiment=smoke               # those that are there
    python -m pipeline.milestones experiment=smoke watch=true    # and those to come, up to the end

Milestones are the averages that a training with train.ema=power has stored, or else the averages in
the checkpoints that runtime.milestone_images keeps. The training is only read, so it may be under
way. Each is scored by evaluate.milestone_num samples of the first sampler with its first seed, and
kept in `points/`, so a killed run resumes, and a later one scores only the new milestones. Writes
curve.jsonl and curve.png after each.
"""

import json
import os
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.base import locks
from pipeline.base.errors import Stopped, UserError, run_main
from pipeline.base.files import atomic_stream, sha256_file
from pipeline.base.text import number
from pipeline.compute.distributed import StopFlag, ranks
from pipeline.config.load import load_step
from pipeline.config.paths import duals_file, out_folder, record_file, reference_file, run_folder
from pipeline.config.samplers import check_guidance, class_numbers, sampler_name
from pipeline.config.schema import Config
from pipeline.config.stages import rank_keys, write_config
from pipeline.config.workloads import check_solver
from pipeline.data.duals import load_duals, with_hash
from pipeline.data.pack import DataAbout, Record
from pipeline.drawing.milestones_chart import milestones_chart
from pipeline.images.sources.find import resolve_image_set
from pipeline.launching.handover import hand_over
from pipeline.reporting.milestones import CURVE, PICTURE, MilestoneRow, write_milestones
from pipeline.sampling import job as sampling
from pipeline.sampling.network import build
from pipeline.sampling.shards import Checksums
from pipeline.scoring.extractors import KINDS, load_extractor
from pipeline.scoring.inputs import check_reference, check_weights
from pipeline.scoring.references import Reference, load_reference
from pipeline.steps import STEPS
from pipeline.training.milestones import Milestone, Run, open_run
from pipeline.trials.points import Points
from pipeline.trials.trial import Judge

STEP = STEPS["milestones"]
POLL_S = 5.0  # seconds between two looks at a training that is watched


@dataclass(frozen=True)
class Job:
    """All that is known before the first milestone."""

    # What is scored
    config: Config  # whose sample is the one sampler
    run: Run
    seed: int
    guide: sampling.Weights | None
    record: Record
    watch: bool
    # By what
    reference: Reference
    reference_file: Path
    # Where it goes
    out: Path

    @property
    def identity(self) -> dict[str, Any]:
        """What all ranks must have in common."""
        guide = self.guide and self.guide.about.to_json()
        parts = {"training": self.run.identity, "seed": self.seed, "guide": guide}
        return {**rank_keys(self.config, "milestones"), **parts, "watch": self.watch}

    def sampling(self, milestone: Milestone) -> sampling.Job:
        """The samples of a milestone."""
        about = self.run.about(milestone)
        weights = sampling.Weights(milestone.path, about, DataAbout.of(self.record))
        return sampling.Job(self.config, weights, self.guide, self.seed, self.out)


def prepare(argv: list[str]) -> Job:
    """Read and check everything; raises UserError about the first problem."""
    return job_of(*load_step(argv, STEP.words))


def job_of(config: Config, words: dict[str, str]) -> Job:
    """The job that a configuration and the paths of the command line ask for."""
    # The first sampler, with fewer images
    watch = words.get("watch", "false").lower()
    if watch not in ("true", "false"):
        raise UserError(f"watch={watch} is not valid: use true or false")
    config = resolve_image_set(config)
    seed = words.get("seed", str(config.sample.samplers[0].seeds[0]))
    if not seed.removeprefix("-").isdecimal():
        raise UserError(f"seed={seed} is not a whole number")
    keys = {"num": config.evaluate.milestone_num, "ema_images": None, "selected": False}
    sample = config.sample.samplers[0].model_copy(update=keys)
    config = config.model_copy(update={"sample": sample})

    # The training
    record = Record.read(Path(words.get("record", record_file(config))))
    folder = Path(words.get("training", run_folder(config) / "train"))
    scratch = Path(words["checkpoints"]) if "checkpoints" in words else None
    run = trained_run(config, folder, scratch, record)

    # What measures it
    KINDS[config.evaluate.extractor].find(config.evaluate.weights)
    file = Path(words.get("reference", reference_file(config)))
    reference = load_reference(file, config.evaluate.extractor)
    check_reference(reference, record, config.evaluate.extractor, file)

    # The sampler fits
    out = out_folder(Path(words.get("out", run_folder(config) / "milestones")))
    job = Job(config, run, int(seed), None, record, watch == "true", reference, file, out)
    weights = job.sampling(Milestone(0, folder)).weights
    check_solver(sample, weights.of_tokens)
    class_numbers(sample, weights.classes)
    sampling.check_counts(sample, weights)
    check_guidance(sample, weights.classes is not None, run.config.train.label_dropout)
    return replace(job, guide=sampling.read_guide(sample, weights, words.get("guide")))


def trained_run(config: Config, folder: Path, scratch: Path | None, record: Record) -> Run:
    """The training in `folder` on the pack of `record`, and on its duals if it has some."""
    run = open_run(config, folder, scratch, DataAbout.of(record).to_json())
    if run.config.train.coupling != "semidiscrete":
        return run
    identified = with_hash(record, load_duals(duals_file(run.config)))
    return open_run(config, folder, scratch, DataAbout.of(identified).to_json())


def preflight(config: Config, paths: dict[str, str], world: int) -> dict[str, Any]:
    """Check what needs no GPU, and wait for another process at the same milestones to end."""
    job = job_of(config, paths)
    locks.wait_until_free(job.out)
    return job.identity


# --- scoring -------------------------------------------------------------------------------------


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


def main(argv: list[str]) -> None:
    """Entry point of every rank."""
    hand_over(STEP.module, argv, STEP.words)
    work(prepare(argv))


if __name__ == "__main__":
    run_main(main)
