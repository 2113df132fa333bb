"""The fit of a solver to one network, on all ranks: exact solutions, grids, refinement."""

from dataclasses import replace

import numpy as np
import torch

from pipeline.compute import execution
from pipeline.compute.distributed import Ranks, ranks
from pipeline.config.samplers import sampler_name
from pipeline.reporting.learned import GridTry, LearnedSolver
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
from pipeline.sampling.solver_job import Job


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
