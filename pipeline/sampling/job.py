"""What there is to sample, read and checked before anything expensive starts."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from pipeline.base.errors import UserError
from pipeline.base.files import sha256_file
from pipeline.compute import draws
from pipeline.config.load import load_step
from pipeline.config.paths import out_folder, samples_folder, weights_file
from pipeline.config.samplers import check_guidance, one_sampler
from pipeline.config.schema import Config, Sample
from pipeline.data.pack import DataAbout
from pipeline.images.sources.find import resolve_image_set
from pipeline.networks.weights_file import load_weights

WORDS = ("weights", "seed", "out", "sampler")


class Weights(NamedTuple):
    """A trained network on disk."""

    state: dict[str, Tensor]
    about: dict[str, Any]  # training keys and data
    sha256: str  # of the file
    record: DataAbout  # the data that it was trained on

    @property
    def classes(self) -> list[str] | None:
        """Class names in label order; None where the network knows no classes."""
        known = self.about["config"]["model"]["class_conditional"]
        return self.record.classes if known else None

    def trained_on(self) -> str:
        """What its images were, in words."""
        images = f"images of {self.record.resolution} px"
        if self.classes is None:
            return f"{images} without classes"
        return f"{images} in {len(self.classes)} classes, {self.classes[0]} the first"


@dataclass(frozen=True)
class Job:
    """All that is known before the first image."""

    config: Config
    weights: Weights
    guide: Weights | None
    seed: int
    out: Path

    @property
    def guide_sha256(self) -> str | None:
        """Hash of the guide's file; None where there is no guide."""
        return None if self.guide is None else self.guide.sha256

    def labels(self, index: np.ndarray) -> np.ndarray:
        """Class of each image index (int64) by sample.classes, -1 where there are none."""
        names = self.weights.classes
        if names is None:
            return np.full_like(index, -1)
        if self.config.sample.classes == "balanced":
            return index % len(names)
        per_class = self.weights.record.per_class or {}
        counts = [per_class[name] for name in names]
        return draws.category(self.seed, draws.SAMPLE_CLASS, index, counts)


def prepare(argv: list[str]) -> Job:
    """Read the configuration and the weights; raises UserError about the first problem."""
    config, own = load_step(argv, WORDS)
    config = resolve_image_set(config)
    config = one_sampler(config, own.get("sampler"))
    try:
        seed = int(own.get("seed", config.sample.seeds[0]))
    except ValueError as error:
        raise UserError(f"seed={own['seed']} is not a whole number") from error
    path = Path(own["weights"]) if "weights" in own else weights_file(config)
    weights = read_weights(path)
    check_halflife(config.sample.ema_halflife_images, weights.about, path)
    check_counts(config.sample, weights, path)
    dropout = weights.about["config"].get("train", {}).get("label_dropout")
    check_guidance(config.sample, weights.classes is not None, dropout)
    guide = read_guide(config.sample, weights)
    out = out_folder(Path(own.get("out", samples_folder(config, seed))))
    return Job(config, weights, guide, seed, out)


def read_weights(path: Path) -> Weights:
    """The weights in a file; raises UserError where it is missing, damaged or another program's."""
    state, about = load_weights(path)
    record = DataAbout.parse(about.get("record"), f"the data of weights {path}")
    return Weights(state, about, sha256_file(path), record)


def read_guide(sample: Sample, weights: Weights) -> Weights | None:
    """The weights of sample.guide; None where there is none, or no guidance.

    Raises UserError where they are of images of another size or of other classes than `weights`.
    """
    if sample.guide is None or sample.guidance == 1:
        return None
    guide = read_weights(Path(sample.guide))
    same_size = guide.record.resolution == weights.record.resolution
    if not same_size or guide.classes != weights.classes:
        raise UserError(
            f"sample.guide={sample.guide} was trained on {guide.trained_on()}, but the weights it "
            f"is to guide on {weights.trained_on()}: give weights of the same size and classes"
        )
    return guide


def check_counts(sample: Sample, weights: Weights, path: Path) -> None:
    """Raise UserError where classes are to be drawn and the weights do not know how often."""
    if sample.classes == "balanced" or weights.classes is None:
        return
    if not set(weights.classes) <= set(weights.record.per_class or {}):
        raise UserError(
            f"weights {path} do not say how many images each class had (`per_class`), which "
            "sample.classes=histogram needs: use balanced, or make the weights again from a pack's "
            "record that says so"
        )


def check_halflife(wanted: int | None, about: dict[str, Any], path: Path) -> None:
    """Raise UserError where the weights are averaged with another half-life than `wanted`."""
    there = about.get("ema_halflife_images")
    if wanted is not None and wanted != there:
        raise UserError(
            f"weights {path} are averaged with a half-life of {there} images, "
            f"not sample.ema_halflife_images={wanted}: give another file, or null"
        )
