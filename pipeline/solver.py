"""A solver of few steps, fitted to one network: `sample.solver=learned`.

    torchrun --standalone --nproc-per-node=4 -m pipeline.solver experiment=imagenet \
        sample.solver=learned sample.steps=8

Writes the times and coefficients of sample.steps steps of one evaluation each, with which `sample`
comes as near as it can to dopri5 at a tolerance of 1e-5: it is fitted step by step
(pipeline/sampling/fitting.py), and then refined as a whole (pipeline/sampling/refining.py), by
sample.fit_images images of sample.fit_seed, which is not among the reported seeds, for the weights,
guidance and precision of the sampler.
"""

from pipeline.base.errors import run_main
from pipeline.base.imports import importing
from pipeline.config.load import load_step
from pipeline.config.schema import Config
from pipeline.launching.handover import hand_over
from pipeline.sampling.solver_job import Job, job_of
from pipeline.steps import STEPS

STEP = STEPS["solver"]


def prepare(argv: list[str]) -> Job:
    """Read and check everything; raises UserError about the first problem."""
    return job_of(*load_step(argv, STEP.words))


def preflight(config: Config, paths: dict[str, str], world: int) -> dict[str, object]:
    """All checks that need no network."""
    return job_of(config, paths).identity


def main(argv: list[str]) -> None:
    """Entry point of every rank."""
    hand_over(STEP.module, argv, STEP.words)
    job = prepare(argv)
    with importing():  # of torch, which the launcher does without
        from pipeline.sampling.solver_loop import work
    work(job)


if __name__ == "__main__":
    run_main(main)
