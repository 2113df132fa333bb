"""A small pack with samples and a reference, and steps that run by a small network.

Started with the folder of a world, reference or evaluate, and words, this module is such a step.
"""

import hashlib
import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from pipeline import evaluate, reference
from pipeline.data.pack import Hashes, Record
from pipeline.scoring import evaluate_loop, measure, reference_loop
from pipeline.scoring.extractors import Extractor
from pipeline.scoring.kinds import KINDS
from tests.drawings import drawn
from tests.scoring.test_keepers import LOGITS, WIDTH, small_extractor

SIZE = 16  # px


def small(*_: Any) -> Extractor:
    """A stand-in for load_extractor: a small network in the place of EfficientNet-Lite0."""
    actual = vars(small_extractor(SIZE)) | {"name": "efficientnet-lite0"}
    return Extractor(**actual | {"label": "efflite0_96", "title": "EfficientNet-Lite0 at 96 px"})


def use_small(patch: pytest.MonkeyPatch) -> None:
    """Make all steps in this process use the small network."""
    for loop in (evaluate_loop, reference_loop):
        patch.setattr(loop, "load_extractor", small)
    patch.setattr(measure, "LOGITS", LOGITS)
    kind = replace(KINDS["efficientnet-lite0"], width=WIDTH)
    patch.setitem(KINDS, "efficientnet-lite0", kind)


class World(NamedTuple):
    """A pack, its record, samples, and the words that name them."""

    root: Path
    words: list[str]

    def run(self, step: Any, *more: str) -> None:
        """Run a step in this process."""
        names = ("samples", "record", "reference", "out")
        paths = {n: f"{n}={self.root / n}" for n in names}
        if step is reference:
            paths = {"record": paths["record"], "out": f"out={self.root / 'reference'}"}
        step.main([*self.words, *paths.values(), *more])

    def compare(self, images: Any, against: Any, *more: str) -> Any:
        """The scores of any images against any reference."""
        out = self.root / "any.json"
        words = (f"images={images}", f"reference={against}", f"out={out}")
        evaluate.main([*self.words, *words, *more])
        return json.loads(out.read_text())

    def images(self, name: str) -> np.ndarray:
        """The images of `samples` or `pack`."""
        return np.load(self.root / name / "images.npy")

    def result(self) -> Any:
        """The metrics that were written."""
        return json.loads((self.root / "out").read_text())


def sha256(array: np.ndarray) -> str:
    return hashlib.sha256(array.tobytes()).hexdigest()


def world_at(root: Path) -> World:
    """The world in `root`."""
    words = [
        "experiment=tiny",
        "data.resolution=16",
        f"data.path={root / 'pack'}",
        "runtime.device=cpu",
        "evaluate.kid_subsets=5",
    ]
    return World(root, words)


@pytest.fixture(scope="module", autouse=True)
def small_steps() -> Iterator[None]:
    """All steps of a test module run by the small network."""
    with pytest.MonkeyPatch.context() as patch:
        use_small(patch)
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 real images of 16 px, 21 samples, and the reference."""
    root = tmp_path_factory.mktemp("world")
    images, labels = drawn(60, 16, 0)
    record = Record(
        source="shapes",
        resolution=16,
        recipe="box",
        num_images=60,
        classes=["disc", "square", "triangle"],
        sha256=Hashes(images=sha256(images), labels=sha256(labels)),
    )
    for name, (rows, names) in {"pack": (images, labels), "samples": drawn(21, 16, 9)}.items():
        (root / name).mkdir()
        np.save(root / name / "images.npy", rows)
        np.save(root / name / "labels.npy", names)
    record.write(root / "pack" / "manifest.json")
    (root / "samples" / "sample.json").write_text(json.dumps({"seed": 3, "nfe_mean": 8}))
    record.write(root / "record")
    world_at(root).run(reference)
    return root


@pytest.fixture
def world(made: Path, tmp_path: Path) -> World:
    """A copy of `made` to change."""
    return world_at(Path(shutil.copytree(made, tmp_path / "world")))


if __name__ == "__main__":
    use_small(pytest.MonkeyPatch())
    step = {"reference": reference, "evaluate": evaluate}[sys.argv[2]]
    world_at(Path(sys.argv[1])).run(step, *sys.argv[3:])
