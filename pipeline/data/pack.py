"""A pack on disk: its arrays and what is known of them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.base.errors import UserError
from pipeline.base.files import read_json
from pipeline.base.npy import load_npy


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
