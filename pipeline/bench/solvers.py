"""Solvers at few evaluations: distance of their samples from those of dopri5.

The network is the smoke run's, trained for a minute. Every solver carries the same noise with the
same number of evaluations on the uniform grid, without guidance; the distance is the root mean
square over all values of all images, which lie in [-1, 1].
"""

import tempfile
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from pipeline.bench import record
from pipeline.bench.sampling import PLAIN, TRAINED, Bench, trained
from pipeline.compute.distributed import pick_device
from pipeline.config.samplers import EVALUATIONS
from pipeline.config.schema import FixedGridSolver, MultistepSolver
from pipeline.sampling import time_grids

IMAGES = 100
SOLVERS = (*get_args(FixedGridSolver), *get_args(MultistepSolver))
BUDGETS = (8, 16)  # evaluations of an image
EXACT = ("sample.solver=dopri5", "sample.rtol=1e-5", "sample.atol=1e-5")


@torch.inference_mode()
def ends(bench: Bench, *words: str) -> Tensor:
    """The states (N,C,H,W) at time 1 by the sampler of the words."""
    job = bench.job(*PLAIN, *words)
    field, x = bench.field(job, bench.images)
    return field.solve(x, time_grids.times(job.config.sample))


def distances(bench: Bench) -> dict[str, list[float]]:
    """Distance from dopri5 of each solver, by its name and number of evaluations."""
    exact, result = ends(bench, *EXACT), {}
    for budget in BUDGETS:
        for solver in SOLVERS:
            starts = 1 if solver in get_args(MultistepSolver) else 0
            steps = (budget - starts) // EVALUATIONS[solver]
            words = (f"sample.solver={solver}", f"sample.steps={steps}", "sample.grid=uniform")
            moved = (ends(bench, *words) - exact).double()
            result[case(solver, budget)] = [float(moved.square().mean().sqrt())]
    return result


def case(solver: str, budget: int) -> str:
    """The name of a case."""
    return f"{solver} at {budget}"


def nearest(values: dict[str, list[float]], budget: int, solvers: tuple[str, ...]) -> float:
    """The least distance of some solvers."""
    return min(values[case(solver, budget)][0] for solver in solvers)


def run(folder: Path | None = None) -> dict[str, Any]:
    """The result (see pipeline.bench.record); trains in `folder` unless that is done there."""
    with tempfile.TemporaryDirectory() as temporary:
        words = trained(folder or Path(temporary))
        values = distances(Bench(words, pick_device("auto", 0), IMAGES))
    title = f"RMSE of {IMAGES} samples to dopri5 at 1e-5 by equal evaluations, smoke network"
    result = record.summary(title, "RMSE", values, baseline=case("euler", BUDGETS[0]))
    # Multistep against the others
    single, multistep = get_args(FixedGridSolver), get_args(MultistepSolver)
    bars = [
        record.bar(
            f"multistep / best other solver, {budget} evaluations",
            nearest(values, budget, multistep) / nearest(values, budget, single),
            at_most=1.0,
        )
        for budget in BUDGETS
    ]
    return result | {"bars": bars, "trained_on": TRAINED}
