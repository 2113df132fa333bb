"""A pack on disk: its arrays and what is known of them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.base.errors import UserError
from pipeline.base.files import read_json
from pipeline.base.npy import load_npy, sha256_npy

HASHED = 10**9  # bytes: up to this size a pack's images are hashed at each start


@dataclass(frozen=True)
class Pack:
    """Images uint8 (N,H,W,3) and labels int64 (N,), memory-mapped, and their record."""

    images: np.ndarray
    labels: np.ndarray
    record: dict[str, Any]

    def __len__(self) -> int:
        return len(self.images)


def open_pack(folder: Path, record: dict[str, Any]) -> Pack:
    """The pack in `folder`, checked against its record.

    Raises UserError where it is missing, is another pack, or its labels do not match the classes.
    """
    if not (folder / "manifest.json").exists():
        raise UserError(f"pack {folder} is missing: run `make data` (or move IMAGENET_DIR with it)")
    if read_json(folder / "manifest.json").get("sha256") != record["sha256"]:
        raise UserError(
            f"pack {folder} holds other images than its record in results/data says: "
            "run `make data`"
        )
    images, labels = load_npy(folder / "images.npy"), load_npy(folder / "labels.npy")
    size, num = record["resolution"], record["num_images"]
    if images.shape != (num, size, size, 3) or images.dtype != np.uint8 or labels.shape != (num,):
        raise UserError(f"pack {folder} is damaged (not as its record says): run `make data`")
    check_labels(labels, len(record["classes"]), folder)
    return Pack(images, labels, record)


def check_labels(labels: np.ndarray, num_classes: int, where: Path) -> None:
    """Raise UserError unless all labels lie in 0 … num_classes-1."""
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        raise UserError(
            f"labels {low}…{high} in {where} do not match its {num_classes} classes: "
            "run `make data` to build the pack again"
        )


def check_arrays(pack: Pack, folder: Path) -> None:
    """Raise UserError if the arrays of the pack in `folder` are not those of its record.

    That the files are whole, and that the manifest's hash is the record's, was found when the pack
    was opened. The arrays themselves are hashed here, except images of more than HASHED bytes:
    reading the 15 GB of ImageNet-64 at each start would take minutes, so there a byte that
    changed on the disk goes unnoticed.
    """
    for name, array in (("images", pack.images), ("labels", pack.labels)):
        hashed = array.nbytes <= HASHED
        if hashed and sha256_npy(folder / f"{name}.npy") != pack.record["sha256"][name]:
            raise UserError(
                f"{folder / name}.npy has changed since it was written (its sha256 is not the "
                "record's): run `make data` to build the pack again"
            )
