"""Averages stored in training, of which the averages of other widths are made afterwards: files.

They lie in the folder `averages` beside the checkpoints, `ema<width>-<images>.safetensors`. None is
deleted. A snapshot is on the disk before any checkpoint of its step or a later one, so a training
that goes on has all that came before.
"""

import re
from pathlib import Path

from pipeline.training.power_profile import Profile

NAME = re.compile(r"ema([\d.e-]+)-(\d+)\.safetensors")


def file_of(folder: Path, profile: Profile) -> Path:
    """The file of an average."""
    return folder / f"ema{profile.width}-{profile.images:013d}.safetensors"


def stored(folder: Path) -> dict[Profile, Path]:
    """The averages in a folder, whole ones alone."""
    names = {path: NAME.fullmatch(path.name) for path in sorted(folder.glob("ema*"))}
    return {Profile(float(m[1]), int(m[2])): path for path, m in names.items() if m}
