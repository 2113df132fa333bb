"""Sample images: weights.safetensors -> images.npy, labels.npy, grid.png, strip.png, sample.json.

    torchrun --standalone --nproc-per-node=4 -m pipeline.sample weights=W.safetensors seed=0

Image k is a function of (weights, sampler, seed, k): its noise comes from (seed, k) and its class
is k modulo the number of classes, of all or of the chosen ones, or comes from (seed, k) too,
whatever the batch size and the number of ranks. Its pixels do depend on them by the rounding of
sample.precision: at most one grey level was seen in fp32 and tf32, four in bf16. At one
runtime.sample_batch they do not depend on the number of ranks, nor, with a solver of fixed steps,
on any number of samples that fills a batch (equal to the bit on a CPU). Finished batches are kept
in `shards/` until all are there, so an interrupted run resumes.
"""

from pipeline.base import locks
from pipeline.base.errors import run_main
from pipeline.base.imports import importing
from pipeline.config.schema import Config
from pipeline.launching.handover import hand_over
from pipeline.sampling.job import STEP, job_of, prepare


def preflight(config: Config, paths: dict[str, str], world: int) -> dict[str, object]:
    """Check what needs no GPU, and wait for another sampler of this folder to end."""
    job = job_of(config, paths)
    locks.wait_until_free(job.out)
    return job.identity


def main(argv: list[str]) -> None:
    """Entry point of every rank."""
    hand_over(STEP.module, argv, STEP.words)
    job = prepare(argv)
    with importing():  # of torch, which the launcher does without
        from pipeline.sampling.loop import work
    work(job)


if __name__ == "__main__":
    run_main(main)
