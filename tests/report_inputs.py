"""The files that a report reads, made up: a pack, two sets of samples, a curve, metrics."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config.stages import stage_keys
from pipeline.data.pack import Hashes, Record
from pipeline.reporting.records import Evaluation
from tests.conftest import resolved

CLASSES = ["n00000001_circle", "n00000002_square", "n00000003_ring"]
SIZE = 16  # px
SHA256 = "0123456789abcdef" * 4


def noise(num: int, seed: int, size: int = SIZE) -> np.ndarray:
    """Random images uint8 (num,size,size,3)."""
    return np.random.default_rng(seed).integers(0, 256, (num, size, size, 3), np.uint8)


def write_images(folder: Path, images: np.ndarray, labels: np.ndarray) -> None:
    """A folder of images and labels, as a pack or samples."""
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "images.npy", images)
    np.save(folder / "labels.npy", labels)


def curve_row(step: int) -> dict[str, Any]:
    """One row of the training curve."""
    speed = {"lr": 1e-3, "images_per_s": 300.0, "seconds": step / 10}
    return {"step": step, "images": 32 * step, "loss": 2 / step, "grad_norm": 1.0 / step, **speed}


def sample(seed: int) -> dict[str, Any]:
    """How a set of samples was made."""
    how = {"sampler": "heun-18", "seed": seed, "num": 12, "nfe_mean": 36.0, "nfe_max": 36}
    how |= {"images_per_s": 77.5, "seconds": 1.5, "world_size": 2, "device": "CPU"}
    return how | {"precision": "fp32", "guidance": 1.0}


def of_sampler(seed: int, solver: str, steps: int, value: float) -> dict[str, Any]:
    """`evaluation` of a sampler `<solver>-<steps>` whose distance is `value`, by our own keys."""
    words = (f"sample.solver={solver}", f"sample.steps={steps}", "sample.guidance=1")
    result = evaluation(seed)
    result["sample"] |= {
        "sampler": f"{solver}-{steps}",
        "nfe_mean": steps * (1 + (solver == "heun")),
    }
    result["sample"]["config"] = stage_keys(resolved("experiment=small", *words), "sample")
    result["metrics"][0]["value"] = value
    return result


def evaluation(seed: int) -> dict[str, Any]:
    """A metrics file with a bracketed distance, an unbracketed score and class accuracy."""
    value = 34.5 + seed
    bracket = {"num_images": 9, "floor": 12.25, "value": value + 20, "ceiling": 4321.0}
    about = {"value": value, "num_images": 12, "better": "lower", "bracket": bracket}
    other = {"value": 0.625, "std": 0.0125, "num_images": 9, "better": "higher"}
    return {
        "metrics": [
            {"name": "fid", "label": "FID <of all>", **about},
            {"name": "recall", "label": "Recall", **other},
        ],
        "class_accuracy": {
            "overall": 0.875, "num_images": 12, "per_class": [1.0, 0.5, None],
            "floor": {"overall": 0.9375, "per_class": [1.0, 1.0, 0.8125]},
        },
        "notes": ["few images"],
        "protocol": {"extractor": "inception-v3-compat", "reference": {"pack": SHA256}},
        "sample": sample(seed),
        "seconds": 1.0,
    }  # fmt: skip


def parsed(*contents: dict[str, Any]) -> list[Evaluation]:
    """Metrics files as a report reads them."""
    return [Evaluation.parse(content, "metrics") for content in contents]


def build(root: Path, seeds: tuple[int, ...] = (0, 1)) -> list[str]:
    """All inputs of a report below `root`; returns the command line."""
    labels = np.repeat(np.arange(3), 4)
    write_images(root / "packs" / f"shapes_{SIZE}" / "box", noise(12, 99), labels)
    record = Record(
        source="shapes", resolution=SIZE, recipe="box", num_images=12, classes=CLASSES,
        sha256=Hashes(images=SHA256, labels=SHA256),
    )  # fmt: skip
    record.write(root / "record.json")
    rows = [json.dumps(curve_row(step)) + "\n" for step in range(1, 31)]
    (root / "curve.jsonl").write_text("".join(rows))
    folders = [root / "sample" / f"seed{seed}" for seed in seeds]
    scores = [root / f"heun-18-seed{seed}.json" for seed in seeds]
    for seed, folder, path in zip(seeds, folders, scores, strict=True):
        write_images(folder, noise(12, seed), np.arange(12) % 3)
        (folder / "sample.json").write_text(json.dumps(sample(seed)))
        path.write_text(json.dumps(evaluation(seed)))
    keys = json.dumps({"report": {"grid_classes": 3, "grid_columns": 2}})
    return [
        f"config={keys}", f"data.pack_dir={root / 'packs'}", f"curve={root / 'curve.jsonl'}",
        f"record={root / 'record.json'}", f"samples={json.dumps([*map(str, folders)])}",
        f"metrics={json.dumps([*map(str, scores)])}", f"out={root / 'out'}",
    ]  # fmt: skip
