"""Evaluation of a folder of samples from end to end, and what it refuses."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from pipeline import evaluate, reference, scores
from pipeline.errors import UserError
from pipeline.extractors import load_extractor
from pipeline.torchvision_cpu import torch_fidelity
from tests.conftest import ROOT
from tests.test_scores import CLASSES, CPU, drawn


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


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 real images of 16 px, 21 samples, and the reference."""
    root = tmp_path_factory.mktemp("world")
    images, labels = drawn(60, 16, 0)
    hashes = {"images": sha256(images), "labels": sha256(labels)}
    record = {
        "source": "shapes",
        "resolution": 16,
        "recipe": "box",
        "num_images": 60,
        "classes": ["disc", "square", "triangle"],
        "sha256": hashes,
    }
    for name, (rows, names) in {"pack": (images, labels), "samples": drawn(21, 16, 9)}.items():
        (root / name).mkdir()
        np.save(root / name / "images.npy", rows)
        np.save(root / name / "labels.npy", names)
    (root / "pack" / "manifest.json").write_text(json.dumps({"sha256": hashes}))
    (root / "samples" / "sample.json").write_text(json.dumps({"seed": 3, "nfe_mean": 8}))
    (root / "record").write_text(json.dumps(record))
    world_at(root).run(reference)
    return root


@pytest.fixture
def world(made: Path, tmp_path: Path) -> World:
    """A copy of `made` to change."""
    return world_at(Path(shutil.copytree(made, tmp_path / "world")))


def test_end_to_end_as_commands(world: World) -> None:
    def command(step: str, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", f"pipeline.{step}", *world.words, *words],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )

    root = world.root
    record, statistics = f"record={root / 'record'}", root / "ref" / "shapes.npz"
    made = command("reference", record, f"out={statistics}")
    assert made.returncode == 0, made.stderr
    words = (
        record,
        f"samples={root / 'samples'}",
        f"reference={statistics}",
        f"out={root / 'm'}",
        "evaluate.metrics=[kid]",
    )
    done = command("evaluate", *words)
    assert done.returncode == 0, done.stderr
    assert json.loads((root / "m").read_text())["metrics"][0]["name"] == "kid_efflite0_96"
    assert "Kernel distance, EfficientNet-Lite0 at 96 px: " in done.stdout
    (root / "samples" / "sample.json").unlink()
    refused = command("evaluate", *words)
    assert refused.returncode == 2 and "sample.json is missing" in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_values_and_protocol(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """The written numbers equal torch-fidelity's own statistics of the same images."""
    world.run(evaluate)
    result = world.result()
    assert [m["name"] for m in result["metrics"]] == [
        "frechet_efflite0_96",
        "kid_efflite0_96",
        "precision_efflite0_96",
        "recall_efflite0_96",
    ]
    printed = capsys.readouterr().out
    assert "FID" not in printed and "Fréchet distance, EfficientNet-Lite0 at 96 px: " in printed
    first, kid = result["metrics"][:2]
    extractor = load_extractor("efficientnet-lite0", None, CPU)
    sides = [np.load(world.root / name / "images.npy") for name in ("samples", "pack")]
    stats = [
        torch_fidelity.metric_fid.fid_features_to_statistics(extractor.features(x)[0])
        for x in sides
    ]
    wanted = torch_fidelity.metric_fid.fid_statistics_to_metric(*stats, False)
    assert first["value"] == pytest.approx(wanted["frechet_inception_distance"], rel=1e-4)
    assert (first["num_images"], first["better"]) == (21, "lower")
    for score in (first, kid):
        assert score["bracket"]["num_images"] == 21
        assert score["bracket"]["floor"] < score["bracket"]["ceiling"] / 3
    assert kid["value"] == kid["bracket"]["value"]
    assert result["sample"] == {"seed": 3, "nfe_mean": 8}
    protocol = result["protocol"]
    assert protocol["weights_sha256"] == extractor.weights_sha256
    assert protocol["reference"] == {
        "source": "shapes",
        "resolution": 16,
        "recipe": "box",
        "num_images": 60,
        "pack_sha256": sha256(sides[1]),
        "flipped": False,
    }
    assert protocol["kid_subset_size"] == 20
    accuracy = result["class_accuracy"]
    assert len(accuracy["per_class"]) == CLASSES and accuracy["overall"] > 1 / CLASSES


def test_more_samples_than_half_the_pack(world: World) -> None:
    images, labels = drawn(50, 16, 2)
    np.save(world.root / "samples" / "images.npy", images)
    np.save(world.root / "samples" / "labels.npy", labels)
    world.run(evaluate, "evaluate.kid_subset_size=40")
    result = world.result()
    assert [m["num_images"] for m in result["metrics"]] == [50, 30, 30, 30]
    assert result["protocol"]["kid_subset_size"] == 30
    assert any("kid_subset_size is 30 in place of 40" in note for note in result["notes"])


def test_the_result_does_not_depend_on_the_batch_size(world: World) -> None:
    found = []
    for size in (7, 64):
        world.run(evaluate, f"runtime.feature_batch={size}", "evaluate.metrics=[kid, prc]")
        found.append([m["value"] for m in world.result()["metrics"]])
    assert found[0] == pytest.approx(found[1], rel=1e-3)


def test_what_cannot_be_scored_is_said(world: World) -> None:
    (world.root / "samples" / "labels.npy").unlink()
    world.run(evaluate, "evaluate.metrics=[isc,kid]")
    result = world.result()
    assert [m["name"] for m in result["metrics"]] == ["kid_efflite0_96"]
    assert result["class_accuracy"] is None
    assert any("Inception score is left out" in note for note in result["notes"])
    assert any("samples have no labels" in note for note in result["notes"])


def test_samples_without_classes_have_no_accuracy(world: World) -> None:
    np.save(world.root / "samples" / "labels.npy", np.full(21, -1))
    world.run(evaluate, "evaluate.metrics=[kid]")
    assert world.result()["class_accuracy"] is None
    assert world.result()["notes"] == ["class accuracy is left out: the samples have no labels"]


def test_a_missing_class_leaves_the_accuracy_out(world: World) -> None:
    np.save(world.root / "samples" / "labels.npy", np.zeros(21, np.int64))
    world.run(evaluate, "evaluate.metrics=[kid]")
    assert world.result()["class_accuracy"] is None
    assert "2 of 3 classes do not occur in the 21 samples" in world.result()["notes"][0]


def test_noise_does_not_depend_on_the_batches() -> None:
    whole = evaluate.noise_images(slice(0, 300), 8, 1)
    np.testing.assert_array_equal(whole[5:7], evaluate.noise_images(slice(5, 7), 8, 1))
    assert abs(whole.mean() - 127.5) < 1 and whole.min() == 0 and whole.max() == 255


# --- refusals ----------------------------------------------------------------------------------


def change_reference(world: World, **changes: Any) -> None:
    """Overwrite fields of the reference file."""
    old = vars(scores.load_reference(world.root / "reference"))
    scores.save_reference(world.root / "reference", scores.Reference(**{**old, **changes}))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("pack_sha256", "0" * 64, "is of pack 00000000"),
        ("num_images", 59, "59 images"),
        ("extractor", "inception-v3-compat", "by inception-v3-compat, not"),
        ("weights_sha256", "f" * 64, "made with weights ffffffff"),
    ],
)
def test_references_of_something_else_are_refused(
    world: World, field: str, value: Any, message: str
) -> None:
    change_reference(world, **{field: value})
    with pytest.raises(UserError, match=message):
        world.run(evaluate)
    assert not (world.root / "out").exists()


def test_missing_and_damaged_references_are_refused(world: World) -> None:
    (world.root / "reference").unlink()
    with pytest.raises(UserError, match=r"is missing: run `python -m pipeline\.reference`"):
        world.run(evaluate)
    for content in (b"", b"no archive", b"PK\x03\x04 cut"):
        (world.root / "reference").write_bytes(content)
        with pytest.raises(UserError, match="is damaged"):
            world.run(evaluate)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((21, 8, 8, 3), np.uint8), "16 x 16 px"),
        (np.zeros((21, 16, 16, 3), np.float32), "float32"),
        (np.zeros((1, 16, 16, 3), np.uint8), "at least two"),
        (np.zeros((3, 16, 16, 3), np.uint8), "labels of 3 classes"),
    ],
)
def test_samples_that_do_not_fit_are_refused(
    world: World, images: np.ndarray, message: str
) -> None:
    np.save(world.root / "samples" / "images.npy", images)
    with pytest.raises(UserError, match=message):
        world.run(evaluate)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("evaluate.prc_neighbourhood=21", "21 on each side, but more than 21"),
        ("evaluate.metrics=[isc] evaluate.isc_splits=22", "more than the 21 samples"),
        ("evaluate.seed=-1", "evaluate.seed=-1"),
        ("data.path=/nowhere", "pack /nowhere is missing: run `make data`"),
    ],
)
def test_settings_that_do_not_fit_are_refused(world: World, word: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        world.run(evaluate, *word.split())


@pytest.mark.parametrize("change", [{"recipe": "adm"}, {"resolution": 32}, {"source": "train"}])
def test_samples_of_a_model_of_other_data_are_refused(world: World, change: dict) -> None:
    record = json.loads((world.root / "record").read_text())
    other = record | change | {"sha256": {"images": "f" * 64, "labels": "f" * 64}}
    how = {"seed": 3, "nfe_mean": 8, "data": other}
    (world.root / "samples" / "sample.json").write_text(json.dumps(how))
    name = f"{other['source']}_{other['resolution']}-{other['recipe']} .ffffffff"
    with pytest.raises(UserError, match=f"{name}.*shapes_16-box"):
        world.run(evaluate)
    how["data"] = record
    (world.root / "samples" / "sample.json").write_text(json.dumps(how))
    world.run(evaluate)


def test_a_pack_with_other_bytes_makes_no_reference(world: World) -> None:
    images = np.load(world.root / "pack" / "images.npy")
    images[5, 3, 2, 1] ^= 1
    np.save(world.root / "pack" / "images.npy", images)
    (world.root / "reference").unlink()
    with pytest.raises(UserError, match="its record says"):
        world.run(reference)
    assert not (world.root / "reference").exists()
