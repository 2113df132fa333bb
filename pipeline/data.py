"""A pack on disk -> batches on a device.

Position n of a run (n = step * batch + place in the batch) always names the same image: epoch
n // N is a fresh permutation of the N images, drawn from (seed, epoch). So a step needs no state,
no replay after a resume, and does not know how many ranks share it.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline import noise
from pipeline.errors import UserError
from pipeline.files import load_npy, read_json


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
        raise UserError(
            f"pack {folder} is damaged (shapes differ from its record): run `make data`"
        )
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


@lru_cache(maxsize=2)  # a batch touches two epochs at most
def epoch_order(seed: int, epoch: int, size: int) -> np.ndarray:
    """The permutation of 0 … size-1 that is epoch `epoch`: a pure function of its arguments."""
    key = np.array([seed & (2**64 - 1), epoch], dtype=np.uint64)  # a list would go through float64
    bits = np.random.Philox(key=key, counter=[0, 0, 0, noise.ORDER])
    return np.random.Generator(bits).permutation(size)


def rows_at(positions: np.ndarray, seed: int, size: int) -> np.ndarray:
    """Row of the pack at each position n of a run (int64, any shape): see the module."""
    epochs, places = np.divmod(positions, size)
    rows = np.empty_like(positions)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        rows[here] = epoch_order(seed, int(epoch), size)[places[here]]
    return rows


def load_batch(
    pack: Pack, positions: np.ndarray, seed: int, flip: bool, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Images (B,3,H,W) float32 in [-1,1], channels last, and labels (B,) int64 on `device`.

    With `flip`, the half of the positions that the flip stream names is mirrored.
    """
    rows = rows_at(positions, seed, len(pack))
    pixels = torch.from_numpy(pack.images[rows]).to(device, non_blocking=True)
    labels = torch.from_numpy(pack.labels[rows]).to(device, non_blocking=True)
    images = to_float(pixels.permute(0, 3, 1, 2))
    if flip:
        index = torch.from_numpy(positions).to(device)
        mirrored = noise.uniform(seed, noise.FLIP, index) < 0.5
        images = torch.where(mirrored.view(-1, 1, 1, 1), images.flip(3), images)
    return images, labels


def to_float(pixels: Tensor) -> Tensor:
    """uint8 0 … 255 -> float32 in [-1, 1]."""
    return pixels.to(torch.float32) / 127.5 - 1.0


def to_uint8(images: Tensor) -> Tensor:
    """Float in [-1, 1] (clamped) -> uint8, rounded to the nearest level; inverse of to_float."""
    return ((images.float() + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)
