"""Scores of images against real ones: distances with floor and ceiling, and accuracy.

    python -m pipeline.evaluate config=... samples=FOLDER record=RECORD.json
        reference=FILE.npz out=METRICS.json
    python -m pipeline.evaluate images=PATH reference=PATH [out=FILE.json]

The first form scores the samples of a run against the pack that its model was trained on. The
second scores any images (a folder, .npz, .npy) against any reference: such images, a pack, or a
file of statistics. `across=<source>_<res>-<recipe>` allows a reference of another pack, which it
names. Runs as one process or, under torchrun, as several with the same result.

The Fréchet distance compares all images with the whole reference. Beside it stands a bracket at
equal numbers n of images: two disjoint random parts A and B of the real images, the samples, and
uniform noise, each against B. d(A,B) is what a perfect model would get (floor), d(noise,B) what
images without any content get (ceiling). The kernel distance, precision and recall compare all
samples with all real images too, up to 50,000 on each side, since they need the features; the
Monge distance needs equal numbers.
"""

import time

from pipeline.base.errors import run_main
from pipeline.base.imports import importing
from pipeline.config.load import load_step
from pipeline.config.schema import Config
from pipeline.launching.handover import hand_over
from pipeline.scoring.evaluate_job import Job, job_of
from pipeline.steps import STEPS

STEP = STEPS["evaluate"]


def prepare(argv: list[str]) -> Job:
    """Read and check everything; paths not given follow from the config and its first seed."""
    return job_of(*load_step(argv, STEP.words))


def preflight(config: Config, paths: dict[str, str], world: int) -> dict[str, object]:
    """All checks that need no network."""
    return job_of(config, paths).identity


def main(argv: list[str]) -> None:
    """Entry point of every rank."""
    hand_over(STEP.module, argv, STEP.words)
    start_time = time.monotonic()
    job = prepare(argv)
    with importing():  # of torch, which the launcher does without
        from pipeline.scoring.evaluate_loop import work
    work(job, start_time)


if __name__ == "__main__":
    run_main(main)
