"""EMA width, guidance weight and interval chosen after the training: `select`.

    torchrun --standalone --nproc-per-node=4 -m pipeline.select experiment=edm2_s \
        'select.ema_widths=[0.03,0.15]' 'select.guidance=[1,3]'

Each try is a few samples of the sampler in `sample`, without its runs, with seeds that are not
among those reported, and their Fréchet distance to the whole reference. Trials are kept in
`trials/`, so a killed search resumes, and a longer one repeats none of them. Writes choice.json,
surface.png and, if it searched for a width, weights.safetensors, the chosen average. Samplers with
sample.selected=true use them.
"""

from pipeline.base import locks
from pipeline.base.errors import run_main
from pipeline.base.imports import importing
from pipeline.config.load import load_step
from pipeline.config.schema import Config
from pipeline.launching.handover import hand_over
from pipeline.steps import STEPS
from pipeline.trials.select_job import Job, job_of

STEP = STEPS["select"]


def prepare(argv: list[str]) -> Job:
    """Read and check everything; raises UserError about the first problem."""
    return job_of(*load_step(argv, STEP.words))


def preflight(config: Config, paths: dict[str, str], world: int) -> dict[str, object]:
    """Check what needs no GPU, and wait for another search in this folder to end."""
    job = job_of(config, paths)
    locks.wait_until_free(job.sampling.out)
    return job.identity


def main(argv: list[str]) -> None:
    """Entry point of every rank."""
    hand_over(STEP.module, argv, STEP.words)
    job = prepare(argv)
    with importing():  # of torch, which the launcher does without
        from pipeline.trials.select_loop import work
    work(job)


if __name__ == "__main__":
    run_main(main)
