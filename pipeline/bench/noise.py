"""Noise of the distances at few images: Fréchet, kernel and Monge distance of disjoint subsets.

The images of the smoke run's pack are parted into disjoint subsets of equal numbers, in pairs: one
of a pair stands for samples, as it is and with noise added to its pixels. What matters is the
spread of a metric over the pairs against the difference that the added noise makes.
"""

import math
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.bench import record
from pipeline.compute.distributed import pick_device
from pipeline.config.load import load_step
from pipeline.config.paths import pack_folder
from pipeline.data.pack import Record, open_pack
from pipeline.scoring.extractors import Extractor, load_extractor
from pipeline.scoring.mind import monge_distance
from pipeline.scoring.scores import kernel_distance

SUBSETS, SIZE = 20, 60  # pairs of disjoint subsets, images in each
GREY_LEVELS = 8  # standard deviation of the noise that is added
SEED = 2020
METRICS = ("fid", "kid", "mind")


def few_frechet(a: Tensor, b: Tensor) -> float:
    """Fréchet distance of features (N,D) and (M,D), fast if N and M are far below D.

    The trace of the root of the product of both covariances is the sum of the singular values of
    the product of the centred features, over the root of (N - 1) (M - 1).
    """
    a, b = a.double(), b.double()
    (mean_a, x), (mean_b, y) = ((side.mean(0), side - side.mean(0)) for side in (a, b))
    x, y = x / (len(a) - 1) ** 0.5, y / (len(b) - 1) ** 0.5
    shared = torch.linalg.svdvals(x @ y.T).sum()
    value = (mean_a - mean_b).square().sum() + x.square().sum() + y.square().sum() - 2 * shared
    return float(value)


def values_of(samples: Tensor, real: Tensor) -> dict[str, float]:
    """Each metric of two sets of features of equal numbers."""
    return {
        "fid": few_frechet(samples, real),
        "kid": kernel_distance(samples, real, 1, len(real), SEED)[0],
        "mind": monge_distance(samples, real, SEED),
    }


def by_subset(samples: Tensor, real: Tensor) -> dict[str, list[float]]:
    """Values of each metric over the disjoint subsets."""
    pairs = zip(samples.split(SIZE), real.split(SIZE), strict=True)
    values = [values_of(*pair) for pair in pairs]
    return {metric: [value[metric] for value in values] for metric in METRICS}


def pack_images(folder: Path) -> np.ndarray:
    """Random images (2 SUBSETS SIZE,H,W,3) of the smoke run's pack, which is made in `folder`."""
    words = [f"data.pack_dir={folder}", "experiment=smoke", f"out={folder}/record.json"]
    command = [sys.executable, "-m", "pipeline.downsample", *words]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    config = load_step(words, ("out",))[0]
    images = open_pack(pack_folder(config), Record.read(folder / "record.json")).images
    rows = np.random.default_rng(SEED).permutation(len(images))[: 2 * SUBSETS * SIZE]
    return np.asarray(images[rows])


def noisy(images: np.ndarray) -> np.ndarray:
    """The images with normal noise of GREY_LEVELS added."""
    noise = np.random.default_rng(SEED).normal(0, GREY_LEVELS, images.shape)
    return np.clip(np.rint(images + noise), 0, 255).astype(np.uint8)


def features(extractor: Extractor, images: np.ndarray) -> Tensor:
    """Features (N,D) of images, in host memory."""
    parts = np.array_split(images, math.ceil(len(images) / SIZE))
    return torch.cat([extractor.features(part)[0].cpu() for part in parts])


def compared(clean: list[float], worse: list[float]) -> dict[str, float]:
    """Mean and spread of a metric, and by how many spreads it tells both kinds of images apart."""
    spread = (stdev(clean) ** 2 / 2 + stdev(worse) ** 2 / 2) ** 0.5
    return {
        "mean": mean(clean),
        "std": stdev(clean),
        "relative_std": stdev(clean) / mean(clean),
        "noisy_mean": mean(worse),
        "difference_in_stds": (mean(worse) - mean(clean)) / spread,
    }


def run() -> dict[str, Any]:
    """The result (see pipeline.bench.record)."""
    device = pick_device("auto", 0)
    with tempfile.TemporaryDirectory() as folder:
        images = pack_images(Path(folder))
    # Features of all
    extractor = load_extractor("efficientnet-lite0", None, device)
    first, second = np.split(images, 2)
    sides = {"clean": first, "noisy": noisy(first)}
    real = features(extractor, second)
    # Metrics of the pairs
    values = {name: by_subset(features(extractor, side), real) for name, side in sides.items()}
    noise = {m: compared(values["clean"][m], values["noisy"][m]) for m in METRICS}
    title = f"{SUBSETS} disjoint pairs of {SIZE} real images of the smoke data, EfficientNet-Lite0"
    result = record.summary(title, "distance", values["clean"], baseline="fid")
    return result | {"noise": noise, "noisy": values["noisy"], "grey_levels": GREY_LEVELS}
