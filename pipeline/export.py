"""Samples as files that other programs read: a folder of PNGs, or the .npz of ADM's evaluator.

    python -m pipeline.export samples=FOLDER png=OUTFOLDER npz=FILE.npz

`png` gets 000000.png … in the order of the samples, sample.json, which says how they were made, and
labels.csv (file, label, class) if they have classes. `npz` holds arr_0, images uint8 (N,H,W,3),
and arr_1, labels int64 (N,) if there are classes. Neither may exist before.
"""

import csv
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from pipeline.base.errors import UserError, run_main
from pipeline.base.files import atomic_folder, atomic_stream, read_json
from pipeline.base.npy import load_npy
from pipeline.base.progress import Progress
from pipeline.config.load import load_step
from pipeline.config.paths import out_file
from pipeline.scoring.image_sets import read_labels

WORDS = ("samples", "png", "npz")


class Samples(NamedTuple):
    """A folder of samples, memory-mapped."""

    # The arrays
    images: np.ndarray  # uint8 (N,H,W,3)
    labels: np.ndarray | None  # int64 (N,); None: images without classes
    # For the copies
    classes: list[str]  # names in label order
    about: Path  # the file that says how they were made


def read_samples(folder: Path) -> Samples:
    """The samples in a folder; raises UserError if something is missing or damaged."""
    # Images as bytes
    images = load_npy(folder / "images.npy")
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise UserError(
            f"{folder / 'images.npy'} holds {images.dtype} {images.shape}, not uint8 (N,H,W,3): "
            "sample again"
        )

    # Names of the classes
    try:
        about = folder / "sample.json"
        classes = read_json(about)["data"]["classes"]
    except (KeyError, TypeError) as error:
        raise UserError(f"{about} does not name the classes: sample again") from error

    # One label each
    labels = read_labels(folder / "labels.npy", len(images), len(classes))
    return Samples(images, labels, classes, about)


def check_targets(targets: list[Path]) -> None:
    """Raise UserError if there is nothing to write, or a target exists or is given twice."""
    if not targets:
        raise UserError("nothing to export: give png=FOLDER or npz=FILE, or both")
    for target in targets:
        if targets.count(target) > 1:
            raise UserError(f"png and npz are both {target}: give each a separate name")
        if target.exists() or target.is_symlink():
            raise UserError(f"{target} exists: give another name or remove it first")


def write_png(target: Path, samples: Samples, progress_seconds: float) -> None:
    """Write the folder of PNGs and labels.csv."""
    # Names in order
    names = [f"{k:06d}.png" for k in range(len(samples.images))]
    progress = Progress("export", len(names), progress_seconds)

    # Whole or not at all
    with atomic_folder(target) as folder:
        for k, name in enumerate(names):
            Image.fromarray(np.ascontiguousarray(samples.images[k])).save(folder / name)
            if progress.due():
                progress.show(k + 1)
        # Labels beside them
        if samples.labels is not None:
            labels = samples.labels.tolist()
            rows = [(n, lb, samples.classes[lb]) for n, lb in zip(names, labels, strict=True)]
            with (folder / "labels.csv").open(
                "w", newline="", encoding="utf-8", errors="backslashreplace"
            ) as stream:
                csv.writer(stream).writerows([("file", "label", "class"), *rows])
        shutil.copyfile(samples.about, folder / samples.about.name)


def write_npz(target: Path, samples: Samples) -> None:
    """Write arr_0 and arr_1; the images are copied from their file a part at a time."""
    arrays = [samples.images] if samples.labels is None else [samples.images, samples.labels]
    with atomic_stream(target) as stream:
        np.savez(stream, *arrays)


def main(argv: list[str]) -> None:
    """Write what the words ask for."""
    # The samples
    config, words = load_step(argv, WORDS)
    if "samples" not in words:
        raise UserError("samples=FOLDER is missing: give the folder that holds images.npy")

    # Targets, all free
    targets = {name: Path(words[name]) for name in ("png", "npz") if name in words}
    check_targets(list(targets.values()))
    samples = read_samples(Path(words["samples"]))
    for target in targets.values():
        out_file(target)

    # Each form
    if "png" in targets:
        write_png(targets["png"], samples, config.runtime.progress_seconds)
    if "npz" in targets:
        write_npz(targets["npz"], samples)

    # One line for people
    written = " and ".join(map(str, targets.values()))
    print(f"export: {len(samples.images):,} images, {written}", flush=True)


if __name__ == "__main__":
    run_main(main)
