"""Averages of a training that is under way, whose newest moment has one width so far."""

import shutil
from pathlib import Path

import pytest

from pipeline import average, train
from pipeline.base.errors import UserError
from pipeline.training.weights_file import read_about
from tests.test_train import words


def test_the_newest_moment_that_is_whole(pack: Path, tmp_path: Path) -> None:
    power = ["train.ema=power", "train.images=96", "train.ema_snapshot_images=36"]
    train.main(words(pack, tmp_path / "train", *power))
    (folder,) = (tmp_path / "train").glob("checkpoints/*/averages")
    running, out = tmp_path / "running", tmp_path / "w.safetensors"
    arguments = [f"snapshots={running}", "sample.ema_width=0.07", f"out={out}"]
    shutil.copytree(folder, running)

    # All widths, one of two, none
    for images in (96, 72, 36):
        average.main(arguments)
        assert read_about(out).images == images
        (running / f"ema0.1-{images:013d}.safetensors").unlink()
    with pytest.raises(UserError, match="of one width alone: wait until the training has"):
        average.main(arguments)
