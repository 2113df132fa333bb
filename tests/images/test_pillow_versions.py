"""Packs of several versions of Pillow, installed beside each other, are equal to the byte."""

import io
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.bench.photos import crops_of_size
from tests.conftest import ROOT
from tests.test_downsample import make, words

VERSIONS = ("11.3.0", "12.3.0", "13.0.0")
SIZES = [(333, 500), (100, 400), (500, 375), (64, 64), (40, 30)]  # tall ones in two orders
KINDS = [("JPEG", "RGB"), ("JPEG", "L"), ("JPEG", "CMYK"), ("PNG", "RGB"), ("PNG", "P")]
RECIPES = ("box", "adm", "edm", "box-fast", "adm-fast", "edm-fast")


@cache
def installed(folder: Path, version: str) -> str:
    """Install a version of Pillow into a folder of its own; the reason if that fails, or ""."""
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--only-binary=:all:"]
    done = subprocess.run(
        [*command, "--target", folder / version, f"pillow=={version}"],
        text=True,
        capture_output=True,
    )
    return done.stderr.strip().rpartition("\n")[2] if done.returncode else ""


@pytest.fixture(scope="module")
def pillows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one for each version."""
    folder = tmp_path_factory.mktemp("pillows")
    for version in VERSIONS:
        if why := installed(folder, version):
            pytest.skip(f"NOT TESTED: Pillow {version} cannot be installed: {why}")
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image of each size, in each kind of file."""
    root = tmp_path_factory.mktemp("photos")
    (root / "train/a").mkdir(parents=True)
    for width, height in SIZES:
        (crop,) = crops_of_size((min(width, 333), min(height, 375)), 1)
        for kind, mode in KINDS:
            file = io.BytesIO()
            crop.resize((width, height), Image.Resampling.NEAREST).convert(mode).save(file, kind)
            name = f"{width}_{height}_{mode}.{kind.lower()}"
            (root / "train/a" / name).write_bytes(file.getvalue())
    return root


ALL_RECIPES = """
import sys; import PIL; from pipeline import downsample
version, recipes, *words = sys.argv[1:]
assert PIL.__version__ == version, PIL.__version__
for recipe in recipes.split():
    downsample.main([*words, f"data.recipe={recipe}"])
"""


@pytest.fixture(scope="module")
def packs(pillows: Path, photos: Path) -> Path:
    """Packs of all recipes in <version>, each version in one process."""
    for version in VERSIONS:
        more = (f"data.pack_dir={photos / version}", "data.resolution=16")
        given = [version, " ".join(RECIPES), *words(photos, *more), f"out={photos}/record.json"]
        subprocess.run(
            [sys.executable, "-c", ALL_RECIPES, *given],
            check=True,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(pillows / version)},
        )
    return photos


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_packs_of_all_versions_are_equal(packs: Path, recipe: str) -> None:
    arrays = {v: np.load(packs / v / f"train_16/{recipe}/images.npy") for v in VERSIONS}
    assert len(arrays[VERSIONS[0]]) == len(SIZES) * len(KINDS)
    for version in VERSIONS[1:]:
        np.testing.assert_array_equal(arrays[version], arrays[VERSIONS[0]], err_msg=version)


WHOLE = """
import sys; from pathlib import Path; import numpy as np; from PIL import Image
files = sorted(Path(sys.argv[1]).iterdir())
rows = [Image.open(f).convert("RGB").resize((16, 16), Image.Resampling.BOX) for f in files]
np.save(sys.argv[2], np.stack(rows))
"""


@pytest.mark.slow
def test_the_order_is_that_of_the_published_sets(pillows: Path, photos: Path) -> None:
    """Pillow's own `resize` of both axes at once: up to 12 it gives the pack, 13 does not."""
    small = {}
    for version in VERSIONS:
        out = photos / f"{version}.npy"
        subprocess.run(
            [sys.executable, "-c", WHOLE, photos / "train/a", out],
            check=True,
            env=os.environ | {"PYTHONPATH": str(pillows / version)},
        )
        small[version] = np.load(out)
    ours = make(photos, "data.resolution=16")[1]
    same = {version: bool((rows == ours).all()) for version, rows in small.items()}
    assert same == {"11.3.0": True, "12.3.0": True, "13.0.0": False}
