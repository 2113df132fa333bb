"""Sampling: images/s by solver and precision, with guidance, of the experiment's network.

Its weights are random, so the images mean nothing; all solvers with a fixed grid take the same
number of evaluations, dopri5 as many as it needs at a loose tolerance. The baseline evaluates the
network twice for guidance, eagerly and in float32.
"""

import tempfile
import time
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from pipeline.bench import record
from pipeline.bench.gpu.scale import Scale
from pipeline.bench.sampling import Bench, two_calls
from pipeline.compute import execution
from pipeline.config.load import load_step
from pipeline.config.stages import stage_keys
from pipeline.data.pack import DataAbout
from pipeline.images.sources.find import resolve_image_set
from pipeline.networks import families
from pipeline.sampling import network
from pipeline.sampling.job import Job
from pipeline.training import weights_file
from pipeline.workflow.sizes import num_classes

EVALUATIONS = 8  # of an image, by a fixed grid
STEPS = {"euler": 8, "heun": 4, "midpoint": 4, "rk4": 2}
TOLERANCE = 1e-3  # of dopri5
PRECISIONS = ("bf16", "tf32", "fp32")
SPREAD = 0.02  # deviation of the weights that start at 0, so that the velocity is not 0
TWICE, ONCE = "two calls, float32, eager", "one call, bf16, compiled"


def random_weights(words: tuple[str, ...], path: Path) -> list[str]:
    """Write weights of the experiment's network to `path`; words that sample with them."""
    # A network that gives velocities
    config = resolve_image_set(load_step(list(words), ())[0])
    torch.manual_seed(0)
    net = families.build(config.model, num_classes(config))
    for parameter in net.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=SPREAD)
    # As a training would leave them
    names = [f"class {k}" for k in range(num_classes(config))]
    data = DataAbout(
        source=config.data.source, resolution=config.data.resolution, recipe=config.data.recipe,
        classes=names, sha256=None,
    )  # fmt: skip
    about = weights_file.WeightsAbout(
        config=stage_keys(config, "train"), record=data.to_json(), images=1, gpu_hours=0.0,
        torch=str(torch.__version__), ema_halflife_images=0,
    )  # fmt: skip
    weights_file.save_weights(path, net.state_dict(), about)
    return [*words, f"weights={path}", "sample.ema_halflife_images=null", "sample.guidance=2"]


def rates(bench: Bench, job: Job, rounds: int) -> list[float]:
    """Images/s of each of `rounds` batches, after one that is not timed."""
    execution.set_float32(job.config.sample.precision, bench.device)
    index, networks = np.arange(bench.images, dtype=np.int64), bench.networks(job)
    seconds = []
    for _ in range(rounds + 1):
        began = time.monotonic()
        network.sample_images(job, networks, index, bench.device)
        seconds.append(time.monotonic() - began)
    values = [bench.images / taken for taken in seconds[1:]]
    # At once: a part that is stopped writes no record
    keys = job.config.sample
    print(f"{keys.solver}, {keys.precision}: {median(values):,.1f} images/s", flush=True)
    return values


def case_words(solver: str, precision: str, compiled: bool) -> tuple[str, ...]:
    """Words of a sampler."""
    common = (f"sample.solver={solver}", f"sample.precision={precision}")
    compilation = f"runtime.compile={str(compiled).lower()}"
    if solver == "dopri5":
        return (*common, compilation, f"sample.rtol={TOLERANCE}", f"sample.atol={TOLERANCE}")
    return (*common, compilation, f"sample.steps={STEPS[solver]}")


def by_solver(scale: Scale, compiled: bool = True) -> dict[str, Any]:
    """Every solver in every precision, after the two cases of the promise."""
    with tempfile.TemporaryDirectory() as folder:
        words = random_weights(scale.words, Path(folder) / "weights.safetensors")
        bench = Bench(words, scale.device, scale.images)
        values = promised(bench, scale, compiled)
        notes = others(bench, scale, compiled, values)
    # Against two calls
    title = (
        f"guided sampling of {scale.images} images, {EVALUATIONS} evaluations (dopri5: as many as "
        f"{TOLERANCE:g} needs), random weights: {' '.join(scale.words)}"
    )
    outcome = record.summary(title, "images/s", values, TWICE)
    ratio = outcome["ratio"][ONCE]
    return outcome | {
        "bars": [record.bar("one call in bf16, compiled / two calls", ratio, at_least=2.0)],
        "notes": notes,
    }


def promised(bench: Bench, scale: Scale, compiled: bool) -> dict[str, list[float]]:
    """Rates of the two cases of the promise."""
    plain = bench.job(*case_words("euler", "fp32", compiled=False))
    fast = bench.job(*case_words("euler", "bf16", compiled))
    execution.set_float32("fp32", scale.device)
    twice = [two_calls(bench, plain, repeats=1) for _ in range(scale.rounds)]
    return {TWICE: twice, ONCE: rates(bench, fast, scale.rounds)}


def others(bench: Bench, scale: Scale, compiled: bool, values: dict[str, list[float]]) -> list[str]:
    """Add the rates of every solver in every precision to `values`; notes of those left out."""
    notes: list[str] = []
    # dopri5 last: its batches shrink, and from then on the compiler takes any size
    for solver, precision in product((*STEPS, "dopri5"), PRECISIONS):
        name = f"{solver}, {precision}"
        job = bench.job(*case_words(solver, precision, compiled))
        scale.measure(name, partial(rates, bench, job, scale.rounds), values, notes)
    execution.set_float32("fp32", scale.device)
    return notes
