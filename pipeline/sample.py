"""Sample images: weights.safetensors -> images.npy, labels.npy, grid.png, strip.png, sample.json.

    torchrun --standalone --nproc-per-node=4 -m pipeline.sample weights=W.safetensors seed=0

Image k is a function of (weights, sampler, seed, k): its noise comes from (seed, k) and its class
is k modulo the number of classes or comes from (seed, k) too, whatever the batch size and the
number of ranks. Finished batches are kept in `shards/` until all are there, so an interrupted run
goes on.
"""

from pipeline.base import locks
from pipeline.base.errors import run_main
from pipeline.launching.handover import hand_over
from pipeline.sampling.job import WORDS, prepare


def preflight(argv: list[str], world: int) -> None:
    """Check what the launcher can check before any rank; wait for another sampler to end."""
    locks.wait_until_free(prepare(argv).out)


def main(argv: list[str]) -> None:
    """Entry point of every rank."""
    hand_over("pipeline.sample", argv, WORDS)
    job = prepare(argv)
    from pipeline.sampling.loop import work  # loads torch, which the launcher does without

    work(job)


if __name__ == "__main__":
    run_main(main)
