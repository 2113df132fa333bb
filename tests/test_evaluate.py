"""Evaluation of a folder of samples from end to end."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.linalg import sqrtm

from pipeline import evaluate, reference
from pipeline.scoring import evaluate_loop, measure, scores, whole_sets
from pipeline.scoring.extractors import Extractor
from pipeline.scoring.fidelity import load_torch_fidelity
from pipeline.scoring.references import load_reference
from tests.drawings import CLASSES, drawn
from tests.evaluate_world import World, made, sha256, small, small_steps, world
from tests.on_ranks import on_ranks

__all__ = ["made", "small_steps", "world"]  # fixtures


@pytest.mark.slow
def test_two_ranks_and_one_write_the_same(world: World) -> None:
    more = ["evaluate.metrics=[fid,kid,isc,prc]", "runtime.feature_batch=4"]
    for words in (["reference"], ["evaluate", *more]):
        printed = on_ranks(2, "tests.evaluate_world", str(world.root), *words)
    assert printed.count("Kernel distance, EfficientNet-Lite0 at 96 px: ") == 1
    two, result = load_reference(world.root / "reference"), world.result()
    world.run(reference)
    world.run(evaluate, *more)
    one, other = load_reference(world.root / "reference"), world.result()
    np.testing.assert_allclose(one.mu, two.mu, rtol=1e-10)
    np.testing.assert_allclose(one.sigma, two.sigma, rtol=1e-10, atol=1e-12)
    for first, second in zip(result["metrics"], other["metrics"], strict=True):
        assert first.pop("bracket", {}) == pytest.approx(second.pop("bracket", {}), rel=1e-10)
        assert first.pop("value") == pytest.approx(second.pop("value"), rel=1e-10)
        assert first.pop("std", 0) == pytest.approx(second.pop("std", 0), rel=1e-10)
        assert first == second
    for key in ("class_accuracy", "neighbours", "notes", "protocol"):
        assert result[key] == other[key]


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
    extractor = small()
    sides = [world.images(name) for name in ("samples", "pack")]
    torch_fidelity = load_torch_fidelity()
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
    parts = measure.split(21, 60, 2020)
    a, b = (extractor.features(sides[1][np.sort(rows)])[0] for rows in (parts.a, parts.b))
    actual = [score["real"] for score in result["metrics"][2:]]
    assert actual == pytest.approx(scores.precision_recall(a, b, 3))
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
    assert protocol["versions"]["torch"] == torch.__version__.removesuffix("+cpu")  # no machine
    accuracy, labels = result["class_accuracy"], np.load(world.root / "pack" / "labels.npy")
    part_b = np.sort(parts.b)
    made, real = (extractor.features(x)[0].double().numpy() for x in sides)
    by_class = [real[k] for k in (part_b[labels[part_b] == c] for c in range(CLASSES))]
    means = np.stack([features.mean(0) for features in by_class])
    nearest = ((made[:, None] - means) ** 2).sum(2).argmin(1)
    hits = nearest == np.load(world.root / "samples" / "labels.npy")
    assert accuracy["overall"] == pytest.approx(hits.mean())
    assert accuracy["per_class"] == pytest.approx(hits.reshape(CLASSES, -1).mean(1))


def test_moments_and_distance_equal_numpy_in_float64(world: World) -> None:
    def moments(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        batches = [small().features(images[k : k + 16])[0] for k in range(0, len(images), 16)]
        features = torch.cat(batches).double().numpy()
        return features.mean(0), np.cov(features.T)

    (mu1, sigma1), (mu2, sigma2) = (moments(world.images(name)) for name in ("pack", "samples"))
    actual = load_reference(world.root / "reference")
    np.testing.assert_allclose(actual.mu, mu1, rtol=1e-10)
    np.testing.assert_allclose(actual.sigma, sigma1, rtol=1e-10, atol=1e-12)
    world.run(evaluate, "evaluate.metrics=[fid]")
    root = sqrtm(sigma1 @ sigma2).real
    wanted = ((mu1 - mu2) ** 2).sum() + np.trace(sigma1 + sigma2 - 2 * root)
    assert world.result()["metrics"][0]["value"] == pytest.approx(wanted, rel=1e-10)


def test_more_samples_than_half_the_pack(world: World) -> None:
    images, labels = drawn(50, 16, 2)
    np.save(world.root / "samples" / "images.npy", images)
    np.save(world.root / "samples" / "labels.npy", labels)
    world.run(evaluate, "evaluate.kid_subset_size=40")
    result = world.result()
    assert [m["num_images"] for m in result["metrics"]] == [50, 50, 50, 50]
    assert [m["real_num"] for m in result["metrics"][2:]] == [30, 30]
    assert result["protocol"]["kid_subset_size"] == 40
    assert any("by subsets of 30 images instead of 40" in note for note in result["notes"])
    world.run(evaluate, "evaluate.kid_subset_size=51")
    assert any("subset_size is 50 instead of 51" in note for note in world.result()["notes"])


def test_the_result_does_not_depend_on_the_batch_size(world: World) -> None:
    actual = []
    for size in (7, 64):
        world.run(evaluate, f"runtime.feature_batch={size}", "evaluate.metrics=[kid, prc]")
        actual.append([m["value"] for m in world.result()["metrics"]])
    assert actual[0] == pytest.approx(actual[1], rel=1e-3)


def test_what_cannot_be_scored_is_said(world: World) -> None:
    (world.root / "samples" / "labels.npy").unlink()
    blind = Extractor(**vars(small()) | {"has_logits": False})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate_loop, "load_extractor", lambda *_: blind)
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
    whole = measure.noise_images(np.arange(300), (8, 9), 1)
    np.testing.assert_array_equal(whole[5:7], measure.noise_images(np.arange(5, 7), (8, 9), 1))
    assert abs(whole.mean() - 127.5) < 1 and whole.min() == 0 and whole.max() == 255


# --- more images than are held, and neighbours -------------------------------------------------


def test_features_are_held_for_so_many_images_and_no_more(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.run(evaluate)
    whole = world.result()["metrics"]
    for module in (measure, whole_sets):
        monkeypatch.setattr(module, "HELD", 12)
    world.run(evaluate)
    result = world.result()
    assert [m["num_images"] for m in result["metrics"]] == [21, 12, 12, 12]
    assert result["metrics"][0] == whole[0]  # moments hold nothing
    assert result["protocol"]["kid_subset_size"] == 12
    assert result["protocol"]["num_feature_images"] == 12
    assert any("compare 12 of the 21 samples" in note for note in result["notes"])


def test_copies_of_real_images_are_found_among_the_neighbours(world: World) -> None:
    images = world.images("samples").copy()
    images[0] = world.images("pack")[0]
    np.save(world.root / "samples" / "images.npy", images)
    world.run(evaluate, "evaluate.metrics=[fid]", "out=" + str(world.root / "scores.json"))
    actual = json.loads((world.root / "scores.json").read_text())["neighbours"]
    assert actual["searched"] == 42 and actual["real_searched"] == 21
    distances = np.array(actual["distances"])
    assert distances.shape == (8, 5) and (np.diff(distances) >= 0).all()
    searched = np.sort(np.concatenate(measure.split(21, 60, 2020)[1:]))
    features = [small().features(x)[0].double().numpy() for x in (images, world.images("pack"))]
    sides = features[0][actual["samples"]][:, None], features[1][searched]
    wanted = np.sort(np.sqrt(((sides[0] - sides[1]) ** 2).sum(2)))[:, :5]
    np.testing.assert_allclose(distances, wanted, atol=1e-5)
    if 0 in searched:
        assert actual["rows"][0][0] == 0 and distances[0, 0] < 1e-5 < actual["real"]
    assert Image.open(world.root / "scores-neighbours.png").width > 400
