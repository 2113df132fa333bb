"""Scoring of several seeds: features of the real side once, in the reference, or for each seed.

The steps run as commands on the smoke run's pack. The samples are images of the pack with normal
noise, since the time does not depend on what they show.
"""

import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.bench import record
from pipeline.scoring.references import load_reference, save_reference

SEEDS, NUM = 3, 1000  # sets of samples, images in each
GREY_LEVELS = 10  # standard deviation of the noise that makes samples of real images
KEPT, MADE = "kept in the reference", "made for each seed"


def cpu_seconds(words: list[str]) -> float:
    """Seconds of user and system time of a step as a command, by all its processes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", *words, "experiment=smoke", "runtime.device=cpu"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def make_samples(pack: Path, folder: Path, seed: int) -> None:
    """A folder of samples: NUM random images of a pack with noise, and their labels."""
    # Random images
    rng = np.random.default_rng(seed)
    images, labels = (np.load(pack / f"{name}.npy") for name in ("images", "labels"))
    rows = rng.permutation(len(images))[:NUM]
    noise = rng.normal(0, GREY_LEVELS, images[rows].shape)
    # As the step `sample` writes them
    folder.mkdir()
    np.save(folder / "images.npy", np.clip(np.rint(images[rows] + noise), 0, 255).astype(np.uint8))
    np.save(folder / "labels.npy", labels[rows])
    (folder / "sample.json").write_text(json.dumps({"seed": seed}))


def scored(folder: Path, places: list[str], reference: Path) -> float:
    """CPU seconds of the scores of all seeds against a reference."""
    total = 0.0
    for seed in range(SEEDS):
        words = [f"samples={folder / str(seed)}", f"reference={reference}", f"out={folder}/scores"]
        total += cpu_seconds(["pipeline.evaluate", *places, *words])
    return total


def run(rounds: int = 1) -> dict[str, Any]:
    """CPU seconds of all seeds with both files, and of the file itself."""
    with tempfile.TemporaryDirectory() as name:
        # Pack and samples
        folder = Path(name)
        places = [f"data.pack_dir={folder}"]
        cpu_seconds(["pipeline.downsample", *places, f"out={folder}/record.json"])
        places.append(f"record={folder}/record.json")
        for seed in range(SEEDS):
            make_samples(folder / "shapes_16" / "box", folder / str(seed), seed)
        # Both kinds of reference
        kept, plain = folder / "kept.npz", folder / "plain.npz"
        once = cpu_seconds(["pipeline.reference", *places, f"out={kept}"])
        save_reference(plain, load_reference(kept))
        cases = {
            MADE: lambda: scored(folder, places, plain),
            KEPT: lambda: scored(folder, places, kept),
        }
        values = record.interleaved(cases, rounds)
    # How much is saved
    title = f"scores of {SEEDS} seeds of {NUM:,} samples of the smoke data, features of real images"
    result = record.summary(title, "CPU seconds", values, baseline=MADE)
    return result | {
        "reference_s": once,
        "bars": [record.bar("CPU time of all seeds", result["ratio"][KEPT], at_most=0.45)],
        "notes": [f"the reference itself: {once:.0f} CPU seconds"],
    }
