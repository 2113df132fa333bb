"""Couplings of noise and images: evaluations that dopri5 needs, and distances at few Euler steps.

The data are the smoke run's at 8 px, the network is a smaller one; each coupling trains it with the
same seeds on as many images. Samples have their class and no guidance. Evaluations are the mean of
images at a tolerance of 1e-3; the distance is Fréchet's from images of the pack, by the features of
the smoke run's extractor.
"""

import tempfile
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.bench import record
from pipeline.bench.noise import few_frechet
from pipeline.bench.sampling import Bench
from pipeline.bench.steps import step
from pipeline.compute.distributed import pick_device
from pipeline.config.load import load_step
from pipeline.config.paths import pack_folder
from pipeline.data.duals import load_duals
from pipeline.data.pack import Record, open_pack
from pipeline.sampling import network
from pipeline.scoring.extractors import Extractor, load_extractor

COUPLINGS = ("independent", "optimal_transport", "semidiscrete")
SEEDS = (0, 1, 2)
TRAINED = 32_000  # images: 250 steps
SAMPLED, REAL = 200, 1000  # images
STEPS = (4, 8, 16)  # of Euler
EXPERIMENT = (
    *("experiment=small", "data.resolution=8", "model.channel_mult=[1,2]", "train.batch=128"),
    *("train.lr=4e-3", "train.lr_schedule=cosine", "train.warmup_images=2560"),
    *("train.coupling_images=128", "train.label_dropout=0", f"train.images={TRAINED}"),
    *("runtime.checkpoint_minutes=60", "train.ema_halflife_images=2560"),
)
SAMPLER = ("sample.guidance=1", "sample.precision=fp32")
TOLERANCE = ("sample.solver=dopri5", "sample.rtol=1e-3", "sample.atol=1e-3")
SEMIDISCRETE = "train.coupling=semidiscrete"

Values = dict[str, list[float]]  # of each coupling, one for each seed


def prepared(folder: Path) -> list[str]:
    """Make the pack and its duals in `folder`; words that name them for a training."""
    place = [f"data.pack_dir={folder}"]
    step("downsample", *EXPERIMENT, *place, f"out={folder}/record.json")
    place.append(f"record={folder}/record.json")
    step("coupling", *EXPERIMENT, *place, SEMIDISCRETE, f"out={folder}/duals.npz")
    return [*place, f"duals={folder}/duals.npz"]


def trained(folder: Path, words: list[str], coupling: str, seed: int) -> list[str]:
    """Train with a coupling and a seed; words that name the weights."""
    out = folder / f"{coupling}-{seed}"
    step(
        "train",
        *EXPERIMENT,
        *words,
        f"train.coupling={coupling}",
        f"train.seed={seed}",
        f"out={out}",
    )
    return [*EXPERIMENT, words[0], f"weights={out}/weights.safetensors"]


def real_features(extractor: Extractor, folder: Path) -> Tensor:
    """Features (REAL,D) of random images of the pack in `folder`."""
    words = [*EXPERIMENT, f"data.pack_dir={folder}"]
    config = load_step(words, ())[0]
    images = open_pack(pack_folder(config), Record.read(folder / "record.json")).images
    rows = np.sort(np.random.default_rng(0).permutation(len(images))[:REAL])
    return features(extractor, np.asarray(images[rows]))


def features(extractor: Extractor, images: np.ndarray) -> Tensor:
    """Features (N,D) of images, in host memory."""
    parts = [images[k : k + 50] for k in range(0, len(images), 50)]
    return torch.cat([extractor.features(part)[0].cpu() for part in parts])


def sampled(bench: Bench, *words: str) -> tuple[np.ndarray, float]:
    """Images uint8 (N,H,W,3) by the sampler of the words, and the mean of their evaluations."""
    job, index = bench.job(*SAMPLER, *words), np.arange(bench.images, dtype=np.int64)
    images, evaluations = network.sample_images(job, bench.networks(job), index, bench.device)
    return images, float(evaluations.mean())


def compare(
    place: Path, words: list[str], extractor: Extractor
) -> tuple[Values, dict[int, Values]]:
    """Evaluations of each coupling with each seed, and its distances by the number of steps."""
    real, device = real_features(extractor, place), extractor.device
    values: Values = {name: [] for name in COUPLINGS}
    distances: dict[int, Values] = {steps: {name: [] for name in COUPLINGS} for steps in STEPS}
    for seed in SEEDS:
        for name in COUPLINGS:
            bench = Bench(trained(place, words, name, seed), device, SAMPLED)
            values[name].append(sampled(bench, *TOLERANCE)[1])
            for steps in STEPS:
                images, _ = sampled(bench, "sample.solver=euler", f"sample.steps={steps}")
                distances[steps][name].append(few_frechet(features(extractor, images), real))
    return values, distances


def notes(distances: dict[int, Values]) -> list[str]:
    """Mean distances, a line for each number of steps."""
    return [
        f"distance by {steps} Euler steps: "
        + ", ".join(f"{name} {mean(found):.1f}" for name, found in by_name.items())
        for steps, by_name in distances.items()
    ]


def run(folder: Path | None = None) -> dict[str, Any]:
    """The result (see pipeline.bench.record); trains in `folder`."""
    with tempfile.TemporaryDirectory() as temporary:
        place = folder or Path(temporary)
        words = prepared(place)
        duals = load_duals(place / "duals.npz")
        extractor = load_extractor("efficientnet-lite0", None, pick_device("auto", 0))
        values, distances = compare(place, words, extractor)
    title = (
        f"evaluations of {SAMPLED} images by dopri5 at 1e-3, smoke data at 8 px, {len(SEEDS)} seeds"
    )
    result = record.summary(title, "evaluations", values, baseline="independent")
    bars = [
        record.bar(
            "evaluations, semidiscrete / independent",
            mean(values["semidiscrete"]) / mean(values["independent"]),
            at_most=0.8,
        )
    ]
    more = {"distance": distances, "trained_on": TRAINED, "shares_deviate_by": duals.deviation}
    return result | more | {"bars": bars, "notes": notes(distances)}
