"""Solvers at few evaluations: distance of their samples from those of dopri5.

The network is that of `small`, trained for a minute. Every solver carries the same noise with the
same number of evaluations, without guidance, on the better of the uniform grid and that of EDM; the
learned one is fitted to other noise, on its own times. The distance is the root mean square over
all values of all images, which lie in [-1, 1]; a few images that end elsewhere make most of it, so
that of the median image stands beside it. At the larger number of evaluations the Fréchet distance
to the real images does, too, over that of dopri5.
"""

import tempfile
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from pipeline import solver as fitted
from pipeline.bench import record
from pipeline.bench.sampling import PLAIN, TRAINED, Bench, trained
from pipeline.compute.distributed import Ranks, pick_device
from pipeline.config.paths import pack_folder
from pipeline.config.samplers import EVALUATIONS
from pipeline.config.schema import FixedGridSolver, MultistepSolver
from pipeline.data.pack import open_pack, read_record
from pipeline.sampling import network
from pipeline.scoring.extractors import load_extractor
from pipeline.scoring.keepers import Moments
from pipeline.scoring.scores import frechet

IMAGES, BATCH = 1000, 100
SOLVERS = (*get_args(FixedGridSolver), *get_args(MultistepSolver))
GRIDS = ("uniform", "edm")
BUDGETS = (8, 16)  # evaluations of an image
EXACT = ("sample.solver=dopri5", "sample.rtol=1e-5", "sample.atol=1e-5")
LEARNED = "learned"
Ends = np.ndarray  # (N,3,H,W) float32


@torch.inference_mode()
def ends(bench: Bench, *words: str) -> Ends:
    """The states at time 1 by the sampler of the words."""
    job = bench.job(*PLAIN, *words)
    networks, parts = bench.networks(job), []
    for start in range(0, bench.images, BATCH):
        index = np.arange(start, min(start + BATCH, bench.images), dtype=np.int64)
        field, x = network.start_batch(job, networks, index, bench.device)
        parts.append(field.solve(x, network.grid_of(job)).cpu().numpy())
    return np.concatenate(parts)


def rmse(ends_of_one: Ends, exact: Ends) -> float:
    """Root mean square distance."""
    return float(np.sqrt(np.mean(np.square(ends_of_one - exact, dtype=np.float64))))


def of_median_image(ends_of_one: Ends, exact: Ends) -> float:
    """Root mean square distance of the image that half of the others are nearer than."""
    squares = np.square(ends_of_one - exact, dtype=np.float64)
    return float(np.sqrt(np.median(squares.mean(axis=(1, 2, 3)))))


def on_better_grids(bench: Bench, exact: Ends) -> dict[str, Ends]:
    """The states at time 1 of each solver on its better grid, by its name and evaluations."""
    result = {}
    for budget in BUDGETS:
        for name in SOLVERS:
            starts = 1 if name in get_args(MultistepSolver) else 0
            steps = (budget - starts) // EVALUATIONS[name]
            words = (f"sample.solver={name}", f"sample.steps={steps}")
            found = [ends(bench, *words, f"sample.grid={grid}") for grid in GRIDS]
            result[case(name, budget)] = min(found, key=lambda one: rmse(one, exact))
    return result


def learned_ends(bench: Bench, budget: int, folder: Path, *more: str) -> Ends:
    """The states at time 1 by a solver that is fitted first, in `folder`."""
    file = folder / f"{LEARNED}-{budget}.json"
    words = (f"sample.solver={LEARNED}", f"sample.steps={budget}", *more)
    fitted.main([*bench.words, *PLAIN, *words, f"out={file}"])
    return ends(bench, *words, f"solver={file}")


def frechet_to_real(bench: Bench, sets: list[Ends]) -> list[float]:
    """The Fréchet distance of each set of samples to the images that the network was trained on."""
    job = bench.job(*PLAIN)
    extractor = load_extractor(job.config.evaluate.extractor, None, bench.device)
    folder = pack_folder(job.config)
    real = open_pack(folder, read_record(folder)).images

    def moments(images: np.ndarray) -> Moments:
        result = Moments(extractor.width, bench.device)
        for start in range(0, len(images), BATCH):
            result.update(extractor.features(np.array(images[start : start + BATCH]))[0])
        result.finish(Ranks(0, 1, bench.device))
        return result

    reference, field = (
        moments(real),
        network.start_batch(job, bench.networks(job), np.arange(1), bench.device)[0],
    )
    found = [moments(field.pixels(torch.from_numpy(one))) for one in sets]
    return [frechet(m.mu, m.sigma, reference.mu, reference.sigma) for m in found]


def case(solver: str, budget: int) -> str:
    """The name of a case."""
    return f"{solver} at {budget}"


def nearest(values: dict[str, list[float]], budget: int, solvers: tuple[str, ...]) -> float:
    """The least distance of some solvers."""
    return min(values[case(solver, budget)][0] for solver in solvers)


def run(folder: Path | None = None) -> dict[str, Any]:
    """The result (see pipeline.bench.record); trains in `folder` unless that is done there."""
    with tempfile.TemporaryDirectory() as temporary:
        place = folder or Path(temporary)
        bench = Bench(trained(place), pick_device("auto", 0), IMAGES)
        exact = ends(bench, *EXACT)
        found = on_better_grids(bench, exact)
        found |= {case(LEARNED, b): learned_ends(bench, b, place) for b in BUDGETS}
        scores = frechet_to_real(bench, [exact, found[case(LEARNED, BUDGETS[-1])]])
    values = {name: [rmse(one, exact)] for name, one in found.items()}
    medians = {name: of_median_image(one, exact) for name, one in found.items()}
    title = f"RMSE of {IMAGES} samples to dopri5 at 1e-5 by equal evaluations, network of small"
    result = record.summary(title, "RMSE", values, baseline=case("euler", BUDGETS[0]))
    about = {"bars": bars(values, scores), "of_median_image": medians, "trained_on": TRAINED}
    about["frechet"] = scores
    return result | about


def bars(values: dict[str, list[float]], scores: list[float]) -> list[dict[str, Any]]:
    """The bars of the solvers; `scores`: Fréchet distances of dopri5 and the learned one."""
    single, multistep = get_args(FixedGridSolver), get_args(MultistepSolver)
    first, last = BUDGETS
    result = [
        record.bar(
            f"multistep / best other solver, {budget} evaluations",
            nearest(values, budget, multistep) / nearest(values, budget, single),
            at_most=1.0,
        )
        for budget in BUDGETS
    ]
    learned = nearest(values, first, (LEARNED,)) / nearest(values, first, single)
    result.append(
        record.bar(f"learned / best one-step solver, {first} evaluations", learned, at_most=0.4)
    )
    ratio = scores[1] / scores[0]
    title = f"Fréchet distance, learned with {last} evaluations / dopri5"
    return [*result, record.bar(title, ratio, at_most=1.02)]
