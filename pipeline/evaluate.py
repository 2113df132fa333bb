"""Scores of a folder of samples against a pack: distances with floor and ceiling, and accuracy.

    python -m pipeline.evaluate config=... samples=FOLDER record=RECORD.json
        reference=FILE.npz out=METRICS.json

The Fréchet distance compares all samples with the whole pack. Beside it stands a bracket at equal
numbers n of images: two disjoint random parts A and B of the pack, the samples, and uniform noise,
each against B. d(A,B) is what a perfect model would get (floor), d(noise,B) what images without
any content get (ceiling). The kernel distance and precision/recall need features, not moments, so
they compare the n samples with B.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.config import load_step
from pipeline.distributed import pick_device
from pipeline.errors import run_main
from pipeline.extractors import Extractor, batches, load_extractor
from pipeline.files import write_json
from pipeline.inputs import Inputs, check_weights, read_inputs
from pipeline.keys import Config, Runtime
from pipeline.keys import Evaluate as Settings
from pipeline.layout import (
    record_file,
    reference_file,
    run_folder,
    sampler_name,
    write_config,
)
from pipeline.scores import Entry, Sides, all_scores, class_accuracy
from pipeline.torchvision_cpu import torch_fidelity

WORDS = ("samples", "record", "reference", "out")


# --- features ----------------------------------------------------------------------------------


def draw(num: int, total: int, seed: int) -> np.ndarray:
    """`num` random rows of 0 … total-1, without repetition."""
    return np.random.default_rng(seed).permutation(total)[:num]


def noise_images(part: slice, size: int, seed: int) -> np.ndarray:
    """Uniform uint8 noise (B,size,size,3); image i depends on (seed, i) alone."""
    draws = (np.random.default_rng((seed, i)) for i in range(part.start, part.stop))
    return np.stack([d.integers(0, 256, (size, size, 3), np.uint8) for d in draws])


def collect(
    extractor: Extractor, runtime: Runtime, what: str, num: int, read: Callable[[slice], np.ndarray]
) -> tuple[Tensor, Tensor | None]:
    """Features (num,D) and logits (num,K) or None of the images `read(slice)`, on CPU."""
    features, logits = [], []
    for part in batches(num, runtime.feature_batch, what, runtime.progress_seconds):
        found, scored = extractor.features(read(part))
        features.append(found.cpu())
        if scored is not None:
            logits.append(scored.cpu())
    return torch.cat(features), torch.cat(logits) if logits else None


def measure(inputs: Inputs, extractor: Extractor, config: Config) -> Sides:
    """Features of the samples, of two disjoint random parts of the pack, and of noise."""
    pack, total, seed = inputs.pack, len(inputs.images), config.evaluate.seed
    num = min(total, len(pack) // 2)
    rows = draw(2 * num, len(pack), seed)
    a, b = np.sort(rows[:num]), np.sort(rows[num:])  # sorted: read from the disk in order

    def features(what: str, num: int, read: Callable[[slice], np.ndarray]) -> Any:
        return collect(extractor, config.runtime, what, num, read)

    size = pack.record["resolution"]
    samples, logits = features("samples", total, lambda part: inputs.images[part])
    return Sides(
        samples,
        logits,
        chosen=samples[np.sort(draw(num, total, seed))],
        real_a=features("real images, part A", num, lambda part: pack.images[a[part]])[0],
        real_b=features("real images, part B", num, lambda part: pack.images[b[part]])[0],
        noise=features("noise", num, lambda part: noise_images(part, size, seed))[0],
        labels_a=torch.from_numpy(pack.labels[a]),
        labels_b=torch.from_numpy(pack.labels[b]),
    )


# --- result ------------------------------------------------------------------------------------


def accuracy(inputs: Inputs, sides: Sides) -> tuple[Entry | None, str]:
    """Accuracy of class means of part B on the samples, and on part A for comparison (`floor`).

    Returns (None, why not) where labels are missing or a class does not occur.
    """
    num_classes = len(inputs.pack.record["classes"])
    if inputs.labels is None:
        return None, "class accuracy is left out: the samples have no labels"
    labels = torch.from_numpy(inputs.labels)
    for name, present in (("real images of part B", sides.labels_b), ("samples", labels)):
        missing = num_classes - len(present.unique())
        if missing:
            why = f"{missing} of {num_classes} classes do not occur in the {len(present):,} {name}"
            return None, f"class accuracy is left out: {why}"

    def share(features: Tensor, labels: Tensor) -> Entry:
        return class_accuracy(sides.real_b, sides.labels_b, features, labels, num_classes)

    floor = share(sides.real_a, sides.labels_a)
    return {**share(sides.samples, labels), "num_images": len(labels), "floor": floor}, ""


def remarks(settings: Settings, extractor: Extractor, num: int) -> list[str]:
    """What a reader of the scores must know; `num` images are on each side of the bracket."""
    notes = []
    if not extractor.known_weights:
        notes.append(
            f"the weights file of {extractor.title} is not the published one: compare only with "
            f"scores by the same file (sha256 {extractor.weights_sha256[:8]}…)"
        )
    if "isc" in settings.metrics and not extractor.has_logits:
        notes.append(
            f"the Inception score is left out: these weights of {extractor.title} have no last "
            "layer of the Inception network"
        )
    if "kid" in settings.metrics and num < settings.kid_subset_size:
        notes.append(
            f"kid_subset_size is {num} in place of {settings.kid_subset_size}: there are no more "
            "images on each side"
        )
    return notes


def protocol(inputs: Inputs, extractor: Extractor, settings: Settings, num: int) -> Entry:
    """All that the scores depend on but the samples themselves."""
    record = inputs.pack.record
    return {
        "extractor": extractor.name,
        "weights_sha256": extractor.weights_sha256,
        "reference": {
            **{key: record[key] for key in ("source", "resolution", "recipe")},
            "num_images": inputs.reference.num_images,
            "pack_sha256": inputs.reference.pack_sha256,
            "flipped": False,
        },
        "kid_subsets": settings.kid_subsets,
        "kid_subset_size": min(settings.kid_subset_size, num),
        "isc_splits": settings.isc_splits,
        "prc_neighbourhood": settings.prc_neighbourhood,
        "seed": settings.seed,
        "versions": {"torch": torch.__version__, "torch_fidelity": torch_fidelity.__version__},
    }


def evaluate(inputs: Inputs, extractor: Extractor, config: Config) -> Entry:
    """The scores of the samples with everything they depend on."""
    sides = measure(inputs, extractor, config)
    num = len(sides.real_b)
    classes, why_not = accuracy(inputs, sides)
    notes = remarks(config.evaluate, extractor, num) + ([why_not] if why_not else [])
    return {
        "metrics": all_scores(sides, extractor, config.evaluate, inputs.reference),
        "class_accuracy": classes,
        "notes": notes,
        "protocol": protocol(inputs, extractor, config.evaluate, num),
        "sample": inputs.how,
    }


def show(result: Entry) -> None:
    """Print one line a score, then the notes."""
    for score in result["metrics"]:
        line = f"{score['label']}: {score['value']:.4g}"
        if "bracket" in score:
            near = score["bracket"]
            line += f" (at {near['num_images']:,} images: floor {near['floor']:.4g}, "
            line += f"value {near['value']:.4g}, ceiling {near['ceiling']:.4g})"
        print(line)
    if result["class_accuracy"]:
        share, real = result["class_accuracy"], result["class_accuracy"]["floor"]
        print(f"Class accuracy: {share['overall']:.4g} (real images: {real['overall']:.4g})")
    for note in result["notes"]:
        print(f"note: {note}")


def main(argv: list[str]) -> None:
    """Score one folder of samples; paths not given follow from the config and its first seed."""
    start = time.monotonic()
    config, own = load_step(argv, WORDS)
    sampler = run_folder(config) / "sample" / sampler_name(config.sample)
    samples = Path(own.get("samples", sampler / f"seed{config.sample.seeds[0]}"))
    default_out = run_folder(config) / "metrics" / f"{samples.parent.name}-{samples.name}.json"
    record = Path(own.get("record", record_file(config)))
    reference = Path(own.get("reference", reference_file(config)))
    inputs = read_inputs(config, samples, record, reference)
    device = pick_device(config.runtime.device, 0)
    extractor = load_extractor(config.evaluate.extractor, config.evaluate.weights, device)
    check_weights(inputs.reference, extractor, reference)
    result = evaluate(inputs, extractor, config)
    result["seconds"] = round(time.monotonic() - start, 1)
    out = Path(own.get("out", default_out))
    write_config(out.parent, config, "evaluate")
    write_json(out, result)
    show(result)


if __name__ == "__main__":
    run_main(main)
