"""Random numbers, times, order and batches on a device, against numpy's."""

from functools import partial

import numpy as np
import torch
from torch import Tensor

from pipeline.bench.gpu_check import reference
from pipeline.bench.gpu_check.check import Check, Figure
from pipeline.bench.gpu_check.inputs import made_up_job
from pipeline.compute import draws
from pipeline.data.reader import Mapped, Resident, rows_at
from pipeline.flow.times import sample_times
from pipeline.flow.workload import Batch, FlowMatching
from pipeline.networks import dropout

SEEDS = (0, 7, 2**63 - 25)  # within and beyond 32 bits
INDEX = np.array([0, 1, 2, 1000, 2**31, 2**32 - 1, 2**32, 2**40 + 3, 2**62], dtype=np.int64)
COUNT = 3 * 8 * 8
POSITIONS = np.concatenate([np.arange(24), np.arange(2040, 2056), np.arange(10**10, 10**10 + 8)])


def differing(ours: Tensor, exact: np.ndarray) -> int:
    """How many values differ."""
    return int((ours.cpu().numpy() != exact).sum())


def furthest(ours: Tensor, exact: np.ndarray) -> float:
    """Largest difference of a value."""
    return float(np.abs(ours.cpu().double().numpy() - exact).max())


def integers(device: torch.device) -> Figure:
    """Words and uniforms of all streams."""
    index, wrong = torch.from_numpy(INDEX).to(device), 0
    for seed in SEEDS:
        for stream in range(8):
            words = draws.words(seed, stream, index, COUNT)
            wrong += differing(words, reference.words(seed, stream, INDEX, COUNT).astype(np.int64))
            uniforms = draws.uniform(seed, stream, index)
            wrong += differing(uniforms, reference.uniform(seed, stream, INDEX))
    return Figure(wrong, 0, "words")


def normals(device: torch.device) -> Figure:
    """Noise of training and of sampling."""
    index, most = torch.from_numpy(INDEX).to(device), 0.0
    for seed in SEEDS:
        ours = draws.normal(seed, draws.TRAIN_NOISE, index, (3, 8, 8)).flatten(1)
        most = max(
            most, furthest(ours, reference.normal(seed, reference.TRAIN_NOISE, INDEX, COUNT))
        )
        ours = draws.normal(seed, draws.SAMPLE_NOISE, index, (3, 8, 8)).flatten(1)
        exact = reference.normal(seed, reference.SAMPLE_NOISE, INDEX, COUNT)
        most = max(most, furthest(ours, exact))
    return Figure(most, 5e-6, "deviations")


def masks(device: torch.device) -> Figure:
    """Hashes of dropout."""
    keys = draws.pairs(3, draws.DROPOUT, torch.from_numpy(INDEX).to(device))
    exact_keys = reference.words(3, reference.DROPOUT, INDEX, 1)[:, :2, 0].astype(np.uint32)
    wrong = 0
    for layer in (0, 5):
        hashes = dropout.hashes(keys, layer, torch.Size((32, 8, 8)))
        exact = reference.dropout_hashes(exact_keys, layer, (32, 8, 8))
        wrong += differing(hashes, exact.astype(np.int32))
    return Figure(wrong, 0, "values")


def times(kind: str, device: torch.device) -> Figure:
    """Times of 4096 images."""
    index = np.arange(4096, dtype=np.int64)
    uniforms = draws.uniform(1, draws.TIME, torch.from_numpy(index).to(device))
    ours = sample_times(kind, uniforms, None, None)
    exact = reference.times(kind, reference.uniform(1, reference.TIME, index))
    return Figure(furthest(ours, exact), 3.1e-8, "of [0, 1]")


def copied(device: torch.device) -> Figure:
    """Batches of a pack's copy on the device, and of its memory map, against its arrays."""
    pack, seed, wrong = workload().pack, 5, 0
    rows = rows_at(POSITIONS, seed, len(pack))
    for reader in (Resident(pack, seed, device), Mapped(pack, seed, device, ahead=3)):
        for part in (slice(0, 20), slice(20, None)):
            pixels, labels = reader.read(POSITIONS[part])
            wrong += differing(pixels, pack.images[rows[part]])
            wrong += differing(labels, pack.labels[rows[part]])
    return Figure(wrong, 0, "values")


def workload() -> FlowMatching:
    """Made-up images with flips, dropout and dropped labels."""
    made: FlowMatching = made_up_job("", "model.dropout=0.2", "train.seed=11").workload  # type: ignore[assignment]
    return made


def order(device: torch.device) -> Figure:
    """Order, flips and labels of a training batch."""
    work, batch = placed_batch(device)
    pixels, labels = exact_images(work)
    levels = ((batch.x1.cpu().double().numpy() + 1) * 127.5).round().transpose(0, 2, 3, 1)
    wrong = int((levels != pixels).sum()) + differing(batch.labels, labels)
    keys = reference.words(11, reference.DROPOUT, POSITIONS, 1)[:, :2, 0]
    assert batch.keys is not None
    wrong += differing(batch.keys, keys.astype(np.uint32).astype(np.int32))
    return Figure(wrong, 0, "values")


def floats(device: torch.device) -> Figure:
    """Pixels, noise and times of a training batch."""
    work, batch = placed_batch(device)
    pixels = exact_images(work)[0].transpose(0, 3, 1, 2) / 127.5 - 1
    noise = reference.normal(11, reference.TRAIN_NOISE, POSITIONS, COUNT)
    most = max(
        furthest(batch.x1, pixels),
        furthest(batch.x0.flatten(1), noise),
        furthest(batch.t, reference.uniform(11, reference.TIME, POSITIONS)),
    )
    return Figure(most, 5e-6, "")


def placed_batch(device: torch.device) -> tuple[FlowMatching, Batch]:
    """The batch of POSITIONS."""
    work = workload()
    work.place(device, announce=False)
    return work, work.batch(POSITIONS)


def exact_images(work: FlowMatching) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (B,H,W,3), mirrored, and labels (B,), dropped, of POSITIONS."""
    rows = rows_at(POSITIONS, 11, len(work.pack))
    mirrored = reference.uniform(11, reference.FLIP, POSITIONS) < 0.5
    pixels = work.pack.images[rows]
    pixels = np.where(mirrored[:, None, None, None], pixels[:, :, ::-1], pixels)
    rate = work.config.train.label_dropout
    dropped = reference.uniform(11, reference.LABEL_DROPOUT, POSITIONS) < rate
    return pixels, np.where(dropped, work.num_classes, work.pack.labels[rows])


CHECKS = (
    Check("random words and uniforms", integers, "integers are exact everywhere"),
    Check("noise", normals, "an angle of up to 2 pi rounds by 4e-7, times a radius of up to 5.8"),
    Check("dropout masks", masks, "integers are exact everywhere"),
    *(
        Check(
            f"times, {kind}",
            partial(times, kind),
            "float64 rounded once to float32: half of its last bit",
        )
        for kind in ("uniform", "logit_normal", "edm_skew")
    ),
    Check("copy of the pack on the device", copied, "the same bytes"),
    Check("order, flips and labels of a batch", order, "integers are exact everywhere"),
    Check("pixels, noise and times of a batch", floats, "as of the noise; pixels round by 2e-7"),
)
