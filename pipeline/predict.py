"""Predict sentences of held-out documents: weights.safetensors -> predicted.npy, rows.npy.

    torchrun --standalone --nproc-per-node=4 -m pipeline.predict weights=W.safetensors out=FOLDER

Each held-out sentence but the first of its piece, or of a pair each of its target, is predicted
from those before it, as the training does. The weights must be of the same pack and of the same
concept.held_out. On any number of ranks and with any runtime.sample_batch the numbers are the same,
to rounding.
"""

from pipeline.base import locks
from pipeline.base.errors import run_main
from pipeline.base.imports import importing
from pipeline.concept.predict_job import job_of
from pipeline.config.load import load_step
from pipeline.config.schema import Config
from pipeline.launching.handover import hand_over
from pipeline.steps import STEPS

STEP = STEPS["predict"]


def preflight(config: Config, paths: dict[str, str], world: int) -> dict[str, object]:
    """Check what needs no GPU, and wait for another job in this folder to end."""
    job = job_of(config, paths)
    locks.wait_until_free(job.out)
    return job.identity


def main(argv: list[str]) -> None:
    """Entry point of every rank."""
    hand_over(STEP.module, argv, STEP.words)
    job = job_of(*load_step(argv, STEP.words))
    with importing():  # of torch, which the launcher does without
        from pipeline.concept.predict_loop import work
    work(job)


if __name__ == "__main__":
    run_main(main)
