"""Scores against their oracles, and evaluation of a folder of samples from end to end."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFilter
from scipy.linalg import sqrtm
from torch.utils.data import Dataset

from pipeline import evaluate, reference, scores
from pipeline.errors import UserError
from pipeline.extractors import load_extractor
from pipeline.scores import Moments, frechet, moments_of
from pipeline.torchvision_cpu import torch_fidelity
from tests.conftest import ROOT
from tests.test_extractors import save_random_inception

CPU = torch.device("cpu")
CLASSES = 3


def drawn(num: int, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Coloured discs, squares and triangles on plain ground: images and their classes."""
    rng = np.random.default_rng(seed)
    images, labels = [], np.sort(np.arange(num) % CLASSES)
    for label in labels:
        picture = Image.new("RGB", (size, size), tuple(rng.integers(0, 90, 3)))
        x, y, r = (*rng.uniform(0.35, 0.65, 2) * size, rng.uniform(0.2, 0.3) * size)
        sides = ((x - r, y - r), (x + r, y + r))
        corners = ((x, y - r), (x - r, y + r), (x + r, y + r))
        pen, colour = ImageDraw.Draw(picture), tuple(rng.integers(150, 256, 3))
        shapes = (pen.ellipse, pen.rectangle, pen.polygon)
        shapes[label](corners if label == 2 else sides, fill=colour)
        images.append(np.asarray(picture))
    return np.stack(images), labels.astype(np.int64)


# --- moments and scores ------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    num=st.integers(2, 60),
    cuts=st.lists(st.integers(0, 60), max_size=5),
    offset=st.floats(-50, 50),
)
def test_moments_do_not_depend_on_the_batches(
    seed: int, num: int, cuts: list[int], offset: float
) -> None:
    rng = np.random.default_rng(seed)
    features = (rng.normal(size=(num, 7)) * rng.uniform(0.1, 3, 7) + offset).astype(np.float32)
    moments = Moments(7)
    for part in np.split(features, sorted(min(c, num) for c in cuts)):
        moments.update(torch.from_numpy(part))
    exact = features.astype(np.float64)
    assert moments.num == num
    np.testing.assert_allclose(moments.mu, exact.mean(0), rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(moments.sigma, np.cov(exact.T), rtol=1e-10, atol=1e-10)


def test_frechet_equals_the_formula_with_a_matrix_root() -> None:
    rng = np.random.default_rng(3)
    one, two = rng.normal(size=(50, 6)), rng.normal(size=(60, 6)) @ rng.normal(size=(6, 6)) + 1
    moments = [(x.mean(0), np.cov(x.T)) for x in (one, two)]
    (mu1, sigma1), (mu2, sigma2) = moments
    root = sqrtm(sigma1 @ sigma2).real
    expected = ((mu1 - mu2) ** 2).sum() + np.trace(sigma1 + sigma2 - 2 * root)
    assert frechet(mu1, sigma1, mu2, sigma2) == pytest.approx(expected, rel=1e-9)
    assert frechet(mu1, sigma1, mu1, sigma1) == pytest.approx(0, abs=1e-9)


class Rows(Dataset):
    """Images as torch-fidelity reads them: uint8 (3,H,W)."""

    def __init__(self, images: np.ndarray) -> None:
        self.images = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.images[index]


def test_scores_equal_torch_fidelity(tmp_path: Path) -> None:
    """FID, KID, Inception score, precision and recall of the same images, by the same weights."""
    weights = str(save_random_inception(tmp_path / "inception.pth"))
    real, made = drawn(6, 24, 0)[0], drawn(7, 24, 1)[0]
    made[:, ::2] = 255 - made[:, ::2]
    kid: dict[str, Any] = {"kid_subsets": 4, "kid_subset_size": 5}
    wanted = torch_fidelity.calculate_metrics(
        input1=Rows(made),
        input2=Rows(real),
        feature_extractor="inception-v3-compat",
        feature_extractor_weights_path=weights,
        fid=True,
        isc=True,
        prc=True,
        **kid,
        isc_splits=3,
        kid=True,
        cuda=False,
        save_cpu_ram=True,
        verbose=False,
        cache=False,
        rng_seed=7,
    )
    extractor = load_extractor("inception-v3-compat", weights, CPU)
    features, logits = extractor.features(made)
    other, _ = extractor.features(real)
    one, two = moments_of(features), moments_of(other)
    assert logits is not None
    found = [
        frechet(one.mu, one.sigma, two.mu, two.sigma),
        *scores.kernel_distance(features, other, 4, 5, 7),
        *scores.inception_score(logits, 3, 7),
        *scores.precision_recall(features, other, 3),
    ]
    keys = (
        "frechet_inception_distance",
        "kernel_inception_distance_mean",
        "kernel_inception_distance_std",
        "inception_score_mean",
        "inception_score_std",
        "precision",
        "recall",
    )
    for key, value in zip(keys, found, strict=True):  # a spread has the error of its mean
        error = 1e-5 * wanted[key.replace("std", "mean")]
        assert value == pytest.approx(wanted[key], abs=error), key


def test_precision_is_of_the_made_images_and_recall_of_the_real_ones() -> None:
    """All made images in one of two real clusters: precision 1, recall one half."""
    rng = np.random.default_rng(4)
    cluster = torch.from_numpy(rng.normal(size=(40, 2)).astype(np.float32))
    real = torch.cat([cluster, cluster + 1000])
    made = cluster[:20] + 0.01
    assert scores.precision_recall(made, real, 3) == pytest.approx((1.0, 0.5), abs=0.15)


def test_class_accuracy_by_hand() -> None:
    real = torch.tensor([[0.0, 0], [2, 0], [10, 0], [12, 0], [0, 30.0]])
    real_labels = torch.tensor([0, 0, 1, 1, 2])  # means (1,0), (11,0), (0,30)
    features = torch.tensor([[5.0, 0], [7, 0], [11, 1], [0, 29]])
    labels = torch.tensor([0, 0, 1, 1])
    found = scores.class_accuracy(real, real_labels, features, labels, 3)
    assert found == {"overall": 0.5, "per_class": [0.5, 0.5, None]}


def test_distances_order_as_the_eye_does() -> None:
    images, _ = drawn(180, 32, 5)
    order = np.random.default_rng(0).permutation(180)
    half, rest = images[order[:90]], images[order[90:]]
    blurred = [Image.fromarray(x).filter(ImageFilter.GaussianBlur(1)) for x in half]
    noise = evaluate.noise_images(slice(0, 90), 32, 0)
    extractor = load_extractor("efficientnet-lite0", None, CPU)

    def features(images: Any) -> torch.Tensor:
        return extractor.features(np.stack([np.asarray(i) for i in images]))[0]

    real = features(rest)
    sides = [features(x) for x in (half, blurred, noise)]
    target = moments_of(real)
    frechets = [frechet(m.mu, m.sigma, target.mu, target.sigma) for m in map(moments_of, sides)]
    kernels = [scores.kernel_distance(x, real, 10, 40, 0)[0] for x in sides]
    for same, blur, noisy in (frechets, kernels):
        assert same < blur / 2 < noisy / 2


def test_noise_does_not_depend_on_the_batches() -> None:
    whole = evaluate.noise_images(slice(0, 300), 8, 1)
    np.testing.assert_array_equal(whole[5:7], evaluate.noise_images(slice(5, 7), 8, 1))
    assert abs(whole.mean() - 127.5) < 1 and whole.min() == 0 and whole.max() == 255


# --- evaluation --------------------------------------------------------------------------------


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
    words = ["experiment=tiny", "data.resolution=16", f"data.path={root / 'pack'}",
             "runtime.device=cpu", "evaluate.kid_subsets=5"]
    return World(root, words)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 real images of 16 px, 21 samples, and the reference."""
    root = tmp_path_factory.mktemp("world")
    images, labels = drawn(60, 16, 0)
    hashes = {"images": sha256(images), "labels": sha256(labels)}
    record = {"source": "shapes", "resolution": 16, "recipe": "box", "num_images": 60,
              "classes": ["disc", "square", "triangle"], "sha256": hashes}
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
    words = (record, f"samples={root / 'samples'}", f"reference={statistics}", f"out={root / 'm'}",
             "evaluate.metrics=[kid]")
    done = command("evaluate", *words)
    assert done.returncode == 0, done.stderr
    result = json.loads((root / "m").read_text())
    assert [m["name"] for m in result["metrics"]] == [
        "frechet_efflite0_96",
        "kid_efflite0_96",
        "precision_efflite0_96",
        "recall_efflite0_96",
    ]
    assert "FID" not in done.stdout and "Fréchet distance, EfficientNet-Lite0" in done.stdout
    (root / "samples" / "sample.json").unlink()
    refused = command("evaluate", *words)
    assert refused.returncode == 2 and "sample.json is missing" in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_values_and_protocol(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """The written numbers equal torch-fidelity's own statistics of the same images."""
    world.run(evaluate)
    result = world.result()
    assert [m["name"] for m in result["metrics"]] == [
        "frechet_efflite0_96", "kid_efflite0_96", "precision_efflite0_96", "recall_efflite0_96"
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


def test_a_missing_class_leaves_the_accuracy_out(world: World) -> None:
    np.save(world.root / "samples" / "labels.npy", np.zeros(21, np.int64))
    world.run(evaluate, "evaluate.metrics=[kid]")
    assert world.result()["class_accuracy"] is None
    assert "2 of 3 classes do not occur in the 21 samples" in world.result()["notes"][0]


@pytest.mark.parametrize(
    ("num", "label"), [(40, "FID-40"), (1000, "FID-1k"), (2500, "FID-2.5k"), (50_000, "FID")]
)
def test_names_and_labels(num: int, label: str) -> None:
    inception = SimpleNamespace(label="", title="Inception-v3")
    other = SimpleNamespace(label="efflite0_96", title="EfficientNet-Lite0 at 96 px")
    found = scores.entry("fid", inception, 1.0, num, "lower")  # type: ignore[arg-type]
    assert (found["name"], found["label"]) == ("fid", f"{label} (Inception-v3)")
    found = scores.entry("fid", other, 1.0, num, "lower")  # type: ignore[arg-type]
    assert found["name"] == "frechet_efflite0_96" and "FID" not in found["label"]


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


def test_a_pack_with_other_bytes_makes_no_reference(world: World) -> None:
    images = np.load(world.root / "pack" / "images.npy")
    images[5, 3, 2, 1] ^= 1
    np.save(world.root / "pack" / "images.npy", images)
    (world.root / "reference").unlink()
    with pytest.raises(UserError, match="its record says"):
        world.run(reference)
    assert not (world.root / "reference").exists()
