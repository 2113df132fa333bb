"""Score over training: the distance of a few samples at each milestone of a training, and its end.

    python -m pipeline.milestones experiment=smoke               # those that are there
    python -m pipeline.milestones experiment=smoke watch=true    # and those to come, up to the end

Milestones are the averages that a training with train.ema=power has stored, or else the averages in
the checkpoints that runtime.milestone_images keeps. The training is only read, so it may be under
way. Each is scored by evaluate.milestone_num samples of the first sampler with its first seed, and
kept in `points/`, so a killed run resumes, and a later one scores only the new milestones. Writes
curve.jsonl and curve.png after each.
"""

from pipeline.base import locks
from pipeline.base.errors import run_main
from pipeline.base.imports import importing
from pipeline.config.load import load_step
from pipeline.config.schema import Config
from pipeline.launching.handover import hand_over
from pipeline.steps import STEPS
from pipeline.trials.milestones_job import Job, job_of

STEP = STEPS["milestones"]


def prepare(argv: list[str]) -> Job:
    """Read and check everything; raises UserError about the first problem."""
    return job_of(*load_step(argv, STEP.words))


def preflight(config: Config, paths: dict[str, str], world: int) -> dict[str, object]:
    """Check what needs no GPU, and wait for another process at the same milestones to end."""
    job = job_of(config, paths)
    locks.wait_until_free(job.out)
    return job.identity


def main(argv: list[str]) -> None:
    """Entry point of every rank."""
    hand_over(STEP.module, argv, STEP.words)
    job = prepare(argv)
    with importing():  # of torch, which the launcher does without
        from pipeline.trials.milestones_loop import work
    work(job)


if __name__ == "__main__":
    run_main(main)
