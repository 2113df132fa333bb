"""What is checked of a training run before its first step, and before any GPU is taken."""

import shutil
from pathlib import Path
from typing import Any

import torch

from pipeline.base.errors import UserError
from pipeline.base.npy import sha256_npy
from pipeline.config.paths import pack_folder
from pipeline.config.schema import Config
from pipeline.config.stages import stage_keys
from pipeline.networks.unet import UNet
from pipeline.training import checkpoint
from pipeline.training.learning_rate import ENDING
from pipeline.training.trainer import Job

HASHED = 10**9  # bytes: up to this size a pack's images are hashed at each start
MOST_DIFFERENCES = 8  # named in one message


def check(job: Job) -> None:
    """Raise UserError where the pack, the checkpoints or the disk do not do for this run."""
    check_pack(job)
    check_checkpoints(job)
    check_disk(job)


def check_pack(job: Job) -> None:
    """Raise UserError where the pack's arrays are not those of its record.

    That the files are whole, and that the manifest's hash is the record's, was found when the pack
    was opened. The arrays themselves are hashed here, but for images of more than HASHED bytes:
    reading the 15 GB of ImageNet-64 at each start would take minutes, so there a byte that
    changed on the disk goes unnoticed.
    """
    folder, record = pack_folder(job.config), job.pack.record["sha256"]
    for name, array in (("images", job.pack.images), ("labels", job.pack.labels)):
        if array.nbytes <= HASHED and sha256_npy(folder / f"{name}.npy") != record[name]:
            raise UserError(
                f"{folder / name}.npy has changed since it was written (its sha256 is not the "
                "record's): run `make data` to build the pack again"
            )


def check_checkpoints(job: Job) -> None:
    """Raise UserError where the newest readable checkpoint is of another experiment or pack."""
    state = checkpoint.load_newest(job.scratch)
    if state is None:
        return
    ours = identity_keys(job.config) | {"pack": job.pack.record["sha256"]}
    theirs = state["config"] | {"pack": state["data"]}
    if different := differences(theirs, ours):
        more = len(different) - MOST_DIFFERENCES
        raise UserError(
            f"{job.scratch} holds checkpoints of another experiment: "
            f"{', '.join(different[:MOST_DIFFERENCES])}{f' and {more} more' if more > 0 else ''}; "
            "give these keys as they are there, or another checkpoints=FOLDER"
        )


def identity_keys(config: Config) -> dict[str, Any]:
    """The keys that shape the weights.

    The training length is among them only where the learning rate falls towards its end.
    """
    keys = stage_keys(config, "train")
    if config.train.lr_schedule not in ENDING:
        del keys["train"]["images"]
    return keys


def differences(theirs: dict[str, Any], ours: dict[str, Any], prefix: str = "") -> list[str]:
    """`key=value there (here value)` for all keys of `ours` that differ, and for those that only
    `theirs` has, but for the training length.
    """
    found = []
    for key in sorted(theirs.keys() | ours.keys()):
        there, here, name = theirs.get(key), ours.get(key), f"{prefix}{key}"
        if isinstance(there, dict) and isinstance(here, dict):
            found += differences(there, here, f"{name}.")
        elif there != here and not (name == "train.images" and key not in ours):
            found.append(f"{name}={there} (here {here})")
    return found


def state_bytes(config: Config, num_classes: int) -> int:
    """Bytes of one checkpoint, about: weights, averages and the optimiser's two moments."""
    with torch.device("meta"):
        net = UNet(config.model, num_classes)
    copies = 1 + len(config.train.ema_halflife_images) + 2
    return sum(p.numel() for p in net.parameters()) * copies * 4  # float32


def check_disk(job: Job) -> None:
    """Raise UserError where the disk has no space for all checkpoints that will lie there at once.

    They are runtime.keep_checkpoints, one that is being written, and the milestones; those that
    lie there already count as space.
    """
    runtime, train = job.config.runtime, job.config.train
    milestones = train.images // runtime.milestone_images if runtime.milestone_images else 0
    count = runtime.keep_checkpoints + 1 + milestones
    size = state_bytes(job.config, len(job.pack.record["classes"]))
    there = sum(path.stat().st_size for path in checkpoint.checkpoints(job.scratch))
    need = count * size - there
    folder = nearest(job.scratch)
    free = shutil.disk_usage(folder).free
    if need > free:
        raise UserError(
            f"{count} checkpoints of {size / 1e9:.2f} GB need {need / 1e9:.2f} GB but the disk of "
            f"{folder} has {free / 1e9:.2f} GB free: make room, or give a smaller "
            "runtime.keep_checkpoints or another checkpoints=FOLDER"
        )


def nearest(folder: Path) -> Path:
    """`folder`, or the nearest above it that exists."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
