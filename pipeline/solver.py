"""A solver of few steps, fitted to one network: `sample.solver=learned`.

    torchrun --standalone --nproc-per-node=4 -m pipeline.solver experiment=imagenet \
        sample.solver=learned sample.steps=8

Writes the times and coefficients of sample.steps steps of one evaluation each, with which `sample`
comes as near as it can to dopri5 at a tolerance of 1e-5: it is fitted step by step
(pipeline/sampling/fitting.py), and then refined as a whole (pipeline/sampling/refining.py), by
sample.fit_images images of sample.fit_seed, which is not among the reported seeds, for the weights,
guidance and precision of the sampler.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.base.errors import UserError, run_main
from pipeline.compute import execution
from pipeline.compute.distributed import Ranks, ranks
from pipeline.config.load import load_step
from pipeline.config.paths import out_file, solver_file
from pipeline.config.samplers import one_sampler, sampler_name
from pipeline.config.schema import Config, Sample
from pipeline.config.stages import rank_keys
from pipeline.images.sources.find import resolve_image_set
from pipeline.launching.handover import hand_over
from pipeline.reporting.learned import GridTry, LearnedSolver
from pipeline.sampling import job as sampling
from pipeline.sampling.fitting import (
    MOST_TRIES,
    Fit,
    Lesson,
    curved,
    fit,
    pattern_search,
    trajectory,
)
from pipeline.sampling.network import Networks, build, start_batch
from pipeline.sampling.refining import refine
from pipeline.sampling.shards import Checksums, checksums
from pipeline.steps import STEPS

STEP = STEPS["solver"]
TOLERANCE = 1e-5  # of the solutions that are to be met


@dataclass(frozen=True)
class Job:
    """All that is known before the first image."""

    sampler: Config  # that samples with the fitted solver
    exact: sampling.Job  # the same, by dopri5
    out: Path

    @property
    def identity(self) -> dict[str, Any]:
        """What all ranks must have in common."""
        return {**self.exact.identity, **rank_keys(self.sampler, "solver")}


def prepare(argv: list[str]) -> Job:
    """Read and check everything; raises UserError about the first problem."""
    return job_of(*load_step(argv, STEP.words))


def job_of(config: Config, words: dict[str, str]) -> Job:
    """The job that a configuration and the paths of the command line ask for."""
    # The sampler
    config = one_sampler(resolve_image_set(config), words.get("sampler"))
    sample = config.sample
    if not sample.learned:
        raise UserError(
            f"sample.solver={sample.solver} has nothing to fit: give sample.solver=learned"
        )
    out = Path(words.get("out", solver_file(config)))

    # Where it should come to
    job = sampling.job_of(
        config.model_copy(update={"sample": by_dopri5(sample)}),
        {word: words[word] for word in ("weights", "guide", "choice") if word in words}
        | {"seed": str(sample.fit_seed), "out": str(out.parent)},
    )
    chosen = {key: getattr(sample, key) for key in ("solver", "precision")}
    sample = job.config.sample.model_copy(update=chosen)
    return Job(config.model_copy(update={"sample": sample}), job, out_file(out))


def by_dopri5(sample: Sample) -> Sample:
    """The sampler of the exact solutions, of sample.fit_images images.

    Half precision would give it rounding to follow instead of the velocity: tf32 takes its place.
    """
    precision = sample.precision if sample.precision in ("fp32", "tf32") else "tf32"
    keys = {"solver": "dopri5", "rtol": TOLERANCE, "atol": TOLERANCE, "num": sample.fit_images}
    return sample.model_copy(update={**keys, "precision": precision})


def preflight(config: Config, paths: dict[str, str], world: int) -> dict[str, Any]:
    """All checks that need no network."""
    return job_of(config, paths).identity


def lessons(job: Job, networks: Networks, group: Ranks) -> list[Lesson]:
    """This rank's batches, with their exact solutions."""
    # By the index of their first image
    num, size = job.exact.config.sample.num, job.sampler.runtime.sample_batch
    starts = range(0, num, size)[group.rank :: group.world]
    parts = [np.arange(start, min(start + size, num), dtype=np.int64) for start in starts]

    # Exact solutions first
    execution.set_float32(job.exact.config.sample.precision, group.device)
    exact = [trajectory(*start_batch(job.exact, networks, p, group.device)) for p in parts]
    execution.set_float32(job.sampler.sample.precision, group.device)
    student = replace(job.exact, config=job.sampler)
    fields = [start_batch(student, networks, part, group.device)[0] for part in parts]
    return [Lesson(*pair) for pair in zip(fields, exact, strict=True)]


def search(steps: int, batches: list[Lesson], group: Ranks) -> tuple[list[GridTry], Fit]:
    """All grids of `steps` steps that were tried, and the fit of the best of them."""
    fits: dict[tuple[float, float], Fit] = {}

    def error(a: float, b: float) -> float:
        fits[a, b] = fit(curved(steps, a, b), batches, group)
        if group.first:
            rmse = f"{fits[a, b].rmse:.4g} from dopri5"
            print(f"solver: try {len(fits)} of at most {MOST_TRIES}, {rmse}", flush=True)
        return fits[a, b].rmse

    tried = pattern_search(error)
    best = min(tried, key=lambda pair: tried[pair])
    return [GridTry(a=a, b=b, error=e) for (a, b), e in tried.items()], fits[best]


@torch.no_grad()  # inference mode would forbid the gradients of `refine`
def work(job: Job) -> None:
    """Fit on every rank; rank 0 writes the file."""
    runtime, join_seconds = job.sampler.runtime, job.sampler.launch.join_seconds
    with ranks(runtime.device, job.identity, join_seconds) as group:
        sums, batch = checksums(job.exact, group), runtime.sample_batch
        with execution.enough_memory(batch, "runtime.sample_batch", group.device):
            batches = lessons(job, build(job.exact, group), group)
            tries, start = search(job.sampler.sample.steps, batches, group)
            best, iterations = refine(start, batches, group)
        evaluations = int(group.sum(torch.tensor(spent(batches))))
        if group.first:
            record = describe(job, sums, tries, best, iterations, evaluations)
            record.write(job.out)
            print(f"solver: {best.rmse:.4g} from dopri5 after {len(tries)} tries: {job.out}")
        group.barrier()


def spent(batches: list[Lesson]) -> int:
    """Evaluations of networks for the images of this rank, those with a gradient among them."""
    return sum(int(field.evaluations.sum()) + exact.evaluations for field, exact in batches)


def describe(
    job: Job,
    sums: Checksums,
    tries: list[GridTry],
    best: Fit,
    iterations: int,
    evaluations: int,
) -> LearnedSolver:
    """The record of the best fit."""
    sample = job.sampler.sample
    return LearnedSolver(
        times=best.times,
        coefficients=best.coefficients,
        sampler=sampler_name(sample),
        weights=sums.weights,
        guide=sums.guide,
        num=sample.fit_images,
        seed=sample.fit_seed,
        error=best.rmse,
        evaluations=evaluations,
        tries=tries,
        iterations=iterations,
    )


def main(argv: list[str]) -> None:
    """Entry point of every rank."""
    hand_over(STEP.module, argv, STEP.words)
    work(prepare(argv))


if __name__ == "__main__":
    run_main(main)
