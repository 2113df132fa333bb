"""A pack of 6,000 crops of photographs from a tar of class tars, killed twice on the way."""

import io
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import skimage
from PIL import Image

from pipeline.bench.photos import PHOTOS, QUALITY, random_crop
from tests.conftest import ROOT

CLASSES, PER_CLASS = 100, 60


def write_tar(path: Path) -> None:
    """ILSVRC2012_img_train.tar of CLASSES x PER_CLASS crops of about 128 px."""
    folder = Path(skimage.__file__).parent / "data"
    photos = [Image.open(folder / file).convert("RGB") for file in PHOTOS.values()]
    with tarfile.open(path, "w") as outer:
        for label in range(CLASSES):
            name, inner = f"n{label:08d}", io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as tar:
                for k in range(PER_CLASS):
                    crop = random_crop(
                        photos[label % len(photos)], 128, np.random.default_rng([label, k])
                    )
                    file = io.BytesIO()
                    crop.save(file, "JPEG", quality=QUALITY)
                    add(tar, f"{name}_{k}.JPEG", file.getvalue())
            add(outer, f"{name}.tar", inner.getvalue())


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def command(root: Path, packs: Path) -> list[str]:
    words = [
        f"data.dir={root}",
        f"data.pack_dir={packs}",
        "data.source=train",
        "data.resolution=64",
    ]
    expected = [f"data.expected_images={CLASSES * PER_CLASS}", f"data.expected_classes={CLASSES}"]
    more = [
        "data.resolution=64",
        "runtime.workers=2",
        "runtime.progress_seconds=1",
        f"out={packs}/record.json",
    ]
    return [sys.executable, "-m", "pipeline.downsample", *words, *expected, *more]


@pytest.mark.slow
def test_killed_twice_with_equal_bytes(tmp_path: Path) -> None:
    write_tar(tmp_path / "ILSVRC2012_img_train.tar")
    subprocess.run(command(tmp_path, tmp_path / "once"), cwd=ROOT, check=True)
    killed = tmp_path / "killed"
    journal = killed / "train_64/box/.making/journal.jsonl"
    for finished in (20, 60):
        run = subprocess.Popen(command(tmp_path, killed), cwd=ROOT)
        while not journal.exists() or len(journal.read_bytes().splitlines()) < finished:
            assert run.poll() is None
            time.sleep(0.005)
        run.send_signal(signal.SIGKILL)
        assert run.wait() == -signal.SIGKILL
    last = subprocess.run(
        command(tmp_path, killed), cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert "resumed after" in last.stdout
    for name in ("images.npy", "labels.npy", "manifest.json"):
        one, two = (tmp_path / where / "train_64/box" / name for where in ("once", "killed"))
        assert one.read_bytes() == two.read_bytes(), name
    assert np.load(killed / "train_64/box/images.npy", mmap_mode="r").shape == (6000, 64, 64, 3)
