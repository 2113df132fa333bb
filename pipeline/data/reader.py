"""A pack on disk -> batches on a device.

Position n of a run (n = step * batch + place in the batch) always names the same image: epoch
n // N is a fresh permutation of the N images, drawn from (seed, epoch). So a step needs no state,
no replay after a resume, and does not know how many ranks share it.
The pixels come from the memory-mapped pack or from a copy of it on the device: the same bits.
"""

from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from pipeline.base.errors import OneRankError
from pipeline.compute import draws
from pipeline.compute.execution import free_memory
from pipeline.data.pack import Pack

CHUNK = 2**26  # bytes of a pack in host memory at once while it is copied to a device


@lru_cache(maxsize=2)  # a batch touches two epochs at most
def epoch_order(seed: int, epoch: int, size: int) -> np.ndarray:
    """The permutation of 0 … size-1 that is epoch `epoch`: a pure function of its arguments."""
    key = np.array([seed & (2**64 - 1), epoch], dtype=np.uint64)  # a list would go through float64
    bits = np.random.Philox(key=key, counter=[0, 0, 0, draws.ORDER])
    return np.random.Generator(bits).permutation(size)


def rows_at(positions: np.ndarray, seed: int, size: int) -> np.ndarray:
    """Row of the pack at each position n of a run (int64, any shape): see the module."""
    epochs, places = np.divmod(positions, size)
    rows = np.empty_like(positions)
    for epoch in np.unique(epochs):
        in_epoch = epochs == epoch
        rows[in_epoch] = epoch_order(seed, int(epoch), size)[places[in_epoch]]
    return rows


def moved(array: np.ndarray, device: torch.device) -> Tensor:
    """`array` on `device`, without waiting for a GPU: through pinned memory, which torch hands out
    again only after the copy is over.
    """
    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


class Mapped:
    """Reads from the memory map. A thread gathers the batch `ahead` positions on (0: no thread)."""

    def __init__(self, pack: Pack, seed: int, device: torch.device, ahead: int = 0) -> None:
        self.pack, self.seed, self.device, self.ahead = pack, seed, device, ahead
        self._thread = ThreadPoolExecutor(1, "read-ahead")
        self._coming: dict[bytes, Future[tuple[np.ndarray, np.ndarray]]] = {}

    def read(self, positions: np.ndarray) -> tuple[Tensor, Tensor]:
        """Pixels uint8 (B,H,W,3) and labels int64 (B,) of positions (B,), on the device."""
        # the batch that was read ahead, unless another is asked for
        ready = self._coming.pop(positions.tobytes(), None)
        pixels, labels = ready.result() if ready else self.gather(positions)
        self._coming.clear()  # a wrong guess
        # the batch after it
        if self.ahead:
            following = positions + self.ahead
            self._coming[following.tobytes()] = self._thread.submit(self.gather, following)
        return moved(pixels, self.device), moved(labels, self.device)

    def take(self, rows: Tensor) -> Tensor:
        """Pixels uint8 (K,H,W,3) of rows (K,) of the pack, on the device."""
        return moved(self.pack.images[rows.cpu().numpy()], self.device)

    def gather(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pixels and labels of positions (B,), in host memory."""
        rows = rows_at(positions, self.seed, len(self.pack))
        return self.pack.images[rows], self.pack.labels[rows]


class Resident:
    """Reads from a copy of the whole pack on the device, made without one in host memory."""

    def __init__(self, pack: Pack, seed: int, device: torch.device) -> None:
        self.pack, self.seed, self.device = pack, seed, device
        self.images = torch.empty(pack.images.shape, dtype=torch.uint8, device=device)
        size = max(1, CHUNK // pack.images[0].nbytes)
        for part in (slice(k, k + size) for k in range(0, len(pack), size)):
            self.images[part] = torch.from_numpy(np.array(pack.images[part]))
        self.labels = moved(np.array(pack.labels), device)

    def read(self, positions: np.ndarray) -> tuple[Tensor, Tensor]:
        """Pixels uint8 (B,H,W,3) and labels int64 (B,) of positions (B,), on the device."""
        rows = moved(rows_at(positions, self.seed, len(self.pack)), self.device)
        return self.take(rows), self.labels.index_select(0, rows)

    def take(self, rows: Tensor) -> Tensor:
        """Pixels uint8 (K,H,W,3) of rows (K,) of the pack, on the device."""
        return self.images.index_select(0, rows)


Reader = Mapped | Resident


def copy_wanted(pack: Pack, setting: str | bool, device: torch.device) -> tuple[bool, str]:
    """Whether runtime.data_on_device = `setting` (auto, true, false) means a copy; and why.

    Raises UserError if it is true and the pack does not fit.
    """
    # Not asked for
    key = f"runtime.data_on_device={str(setting).lower()}"
    if setting is False or (setting == "auto" and device.type != "cuda"):
        return False, f"{key} on {device.type}"

    # Room on the device
    need, free = pack.images.nbytes + pack.labels.nbytes, free_memory(device)
    sizes = f"the pack has {need / 1e9:.2f} GB, {device} has {free / 1e9:.2f} GB free"
    # At most a quarter
    if setting == "auto":
        fits = 4 * need <= free
        return fits, f"{key}: {sizes}{'' if fits else ': over a quarter'}"
    if need > free:
        raise OneRankError(f"{key} but {sizes}: use auto or false, which change no result")
    return True, f"{key}: {sizes}"


def open_reader(
    pack: Pack, seed: int, device: torch.device, setting: str | bool, ahead: int, loud: bool
) -> Reader:
    """The reader of batches of `pack`: see copy_wanted. With `loud`, one line says which it is."""
    copy, why = copy_wanted(pack, setting, device)
    if loud:
        print(f"images: {f'copied to {device}' if copy else 'memory-mapped'} ({why})", flush=True)
    return Resident(pack, seed, device) if copy else Mapped(pack, seed, device, ahead)


def load_batch(reader: Reader, positions: np.ndarray, flip: bool) -> tuple[Tensor, Tensor]:
    """Images (B,3,H,W) float32 in [-1,1], channels last, and labels (B,) int64 on the device.

    With `flip`, the half of the positions that the flip stream names is mirrored.
    """
    pixels, labels = load_pixels(reader, positions, flip)
    return to_float(pixels), labels


def load_pixels(reader: Reader, positions: np.ndarray, flip: bool) -> tuple[Tensor, Tensor]:
    """The same images as uint8 (B,3,H,W), channels last, and labels (B,) int64 on the device."""
    pixels, labels = reader.read(positions)
    if flip:
        index = moved(positions, reader.device)
        mirrored = draws.uniform(reader.seed, draws.FLIP, index) < 0.5
        pixels = torch.where(mirrored.view(-1, 1, 1, 1), pixels.flip(2), pixels)
    return pixels.permute(0, 3, 1, 2), labels


def to_float(pixels: Tensor) -> Tensor:
    """uint8 0 … 255 -> float32 in [-1, 1]."""
    return pixels.to(torch.float32).div_(127.5).sub_(1.0)


ROUNDING = "to the nearest of 256 levels, values outside of [-1, 1] clamped"


def to_uint8(images: Tensor) -> Tensor:
    """Float in [-1, 1] (clamped) -> uint8, rounded to the nearest level; inverse of to_float."""
    return ((images.float() + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)
