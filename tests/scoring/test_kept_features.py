"""Features that a reference keeps: the same scores as without them, and none of another file."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import evaluate, reference
from pipeline.base.errors import UserError
from pipeline.config.load import load_step
from pipeline.scoring import kept_features, reference_loop, sections
from pipeline.scoring.extractors import Extractor
from pipeline.scoring.kept_features import SEED, kept_rows, load_real_side
from pipeline.scoring.measure import split
from pipeline.scoring.references import load_reference, save_reference
from tests.conftest import ROOT
from tests.evaluate_world import World, made, sha256, small, small_steps, world
from tests.scoring.test_keepers import on_ranks

__all__ = ["made", "small_steps", "world"]  # fixtures

METRICS = "evaluate.metrics=[fid,kid,mind,isc,prc]"


def count_images(patch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of images that the network sees from now on."""
    seen: list[int] = []
    features = Extractor.features

    def counted(self: Extractor, batch: np.ndarray) -> Any:
        seen.append(len(batch))
        return features(self, batch)

    patch.setattr(Extractor, "features", counted)
    return seen


def scores(world: World, *words: str) -> Any:
    """The metrics file but its time."""
    world.run(evaluate, METRICS, *words)
    return {key: value for key, value in world.result().items() if key != "seconds"}


def assert_close(one: Any, other: Any, scale: float = 1.0) -> None:
    """Equal but for the rounding of features that were made in other batches.

    Relative to `scale`, the ceiling of a distance: a kernel distance near 0 is what is left of
    means of that size.
    """
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        scale = max(scale, one.get("bracket", one).get("ceiling", scale))
        for key in one:
            assert_close(one[key], other[key], scale)
    elif isinstance(one, list):
        assert len(one) == len(other)
        for pair in zip(one, other, strict=True):
            assert_close(*pair, scale)
    elif isinstance(one, float):
        assert one == pytest.approx(other, rel=1e-5, abs=1e-6 * scale)
    else:
        assert one == other


def without_features(world: World) -> None:
    """The reference as earlier versions wrote it."""
    file = world.root / "reference"
    save_reference(file, load_reference(file))


def test_another_seed_costs_its_own_samples_alone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = count_images(monkeypatch)
    with_file = scores(world)
    assert sum(seen) == 21 + 8  # the samples, and those whose neighbours are searched
    seen.clear()
    without_features(world)
    assert_close(with_file, scores(world))
    assert sum(seen) == 60 + 2 * 21 + 8 + 21  # the pack, samples and noise, and the neighbours


def test_each_image_is_seen_once_for_a_reference(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (world.root / "reference").read_bytes()
    seen = count_images(monkeypatch)
    world.run(reference)
    assert sum(seen) == 60 + 30  # the pack and noise
    assert (world.root / "reference").read_bytes() == before
    assert not list(world.root.glob(".reference*"))


@pytest.mark.parametrize("held", [3, 12])
def test_images_that_are_not_kept_are_looked_at(
    world: World, monkeypatch: pytest.MonkeyPatch, held: int
) -> None:
    """A file with few features, and another evaluate.seed: other images and other noise."""
    wanted = [scores(world, f"evaluate.seed={seed}") for seed in (SEED, 7)]
    monkeypatch.setattr(kept_features, "HELD", held)
    world.run(reference)
    assert len(np.load(world.root / "reference")["kept_rows"]) == 2 * held
    for seed, expected in zip((SEED, 7), wanted, strict=True):
        assert_close(scores(world, f"evaluate.seed={seed}"), expected)


@given(st.integers(2, 300), st.integers(2, 300))
def test_both_parts_of_every_bracket_are_kept(num_samples: int, num_real: int) -> None:
    parts = split(num_samples, num_real, SEED)
    assert {*parts.a, *parts.b} <= {*kept_rows(num_real)}


def test_the_seed_is_that_of_the_configuration() -> None:
    assert load_step(["experiment=tiny"], ())[0].evaluate.seed == SEED


@pytest.mark.parametrize("size", [4, 7, 64])
def test_the_ranks_write_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """The features in the order of the rows and the moments, to the bit on any number of ranks."""
    monkeypatch.setattr(sections, "LEAST_IMAGES", 8)
    images = np.random.default_rng(0).integers(0, 256, (50, 16, 16, 3), np.uint8)
    wanted = np.arange(50) % 3 > 0
    extractor = small()

    def write(group: Any) -> Any:
        of = extractor.of(lambda rows: images[rows])
        folder = tmp_path / str(group.world)
        job = sections.Pass("x", of, size, wanted, extractor.width, True, folder)
        sections.run(job, group, 60)
        found = sections.moments_of(job) if group.first else None
        return found and (np.concatenate([*job.stored("features")]), found.mu, found.sigma)

    features, mu, sigma = on_ranks(1, write)
    expected = extractor.features(images)[0].numpy()
    np.testing.assert_allclose(features, expected[wanted], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(mu, expected.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(sigma, np.cov(expected.T), rtol=1e-4, atol=1e-6)
    for world_size in (2, 3):
        for one, other in zip((features, mu, sigma), on_ranks(world_size, write), strict=True):
            np.testing.assert_array_equal(one, other)


# --- files that are not what they were ----------------------------------------------------------


@pytest.mark.parametrize("key", ["kept_features", "noise_features", "kept_rows", "mu"])
def test_a_changed_file_is_refused(world: World, key: str) -> None:
    file = world.root / "reference"
    content = dict(np.load(file))
    content[key] = content[key].copy()
    content[key].flat[5] += 1
    with file.open("wb") as stream:
        np.savez(stream, **content)
    with pytest.raises(UserError, match="reference .* was changed after it was made .* delete it"):
        world.run(evaluate)


def test_flipped_bytes_are_refused(world: World) -> None:
    """By their hash, or in a file as small as this one by the checksum of the zip."""
    file = world.root / "reference"
    side = load_real_side(file, load_reference(file))
    assert side
    raw = bytearray(file.read_bytes())
    place = raw.index(side.real.features[30].tobytes())
    raw[place] ^= 1
    file.write_bytes(raw)
    with pytest.raises(UserError, match="reference .* (was changed|is damaged) .* delete it"):
        world.run(evaluate)


def test_features_that_do_not_fit_are_damage(world: World) -> None:
    file = world.root / "reference"
    content = dict(np.load(file)) | {"noise_features": np.zeros((4, 2), np.float32)}
    with file.open("wb") as stream:
        np.savez(stream, **content)
    with pytest.raises(UserError, match="is damaged .*numbers of features differ.* delete it"):
        world.run(evaluate)


def test_the_features_of_another_pack_are_refused(world: World) -> None:
    """The pack and its record are others, and the reference is still that of the first."""
    images = world.images("pack")
    before = sha256(images)
    images[0] += 1
    np.save(world.root / "pack" / "images.npy", images)
    for file in (world.root / "record", world.root / "pack" / "manifest.json"):
        file.write_text(file.read_text().replace(before, sha256(images)))
    with pytest.raises(UserError, match="is of pack .* not of .* make it again"):
        world.run(evaluate)


# --- interrupted --------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from pathlib import Path
import pytest
from pipeline.scoring import sections
from tests.evaluate_world import reference, use_small, world_at
use_small(pytest.MonkeyPatch())
sections.LEAST_IMAGES = 16
write = sections.Section.write
def killed(section, file):
    if file.name.startswith(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    write(section, file)
sections.Section.write = killed
world_at(Path(sys.argv[1])).run(reference, "runtime.feature_batch=8")
"""


@pytest.mark.parametrize(
    ("place", "missing"),
    [
        ("reference-000000032", 28 + 30),
        pytest.param("noise-000000016", 14, marks=pytest.mark.slow),
    ],
)
def test_a_killed_reference_goes_on(
    world: World, monkeypatch: pytest.MonkeyPatch, place: str, missing: int
) -> None:
    """It is the same to the byte, and no finished section is made again."""
    monkeypatch.setattr(sections, "LEAST_IMAGES", 16)
    file, words = world.root / "reference", ("runtime.feature_batch=8",)
    world.run(reference, *words)
    before = file.read_bytes()
    file.unlink()
    environment = {**os.environ, "PYTHONPATH": "."}
    done = subprocess.run(
        [sys.executable, "-c", KILLED, world.root, place], cwd=ROOT, env=environment
    )
    assert done.returncode == -signal.SIGKILL
    assert not file.exists() and list(world.root.glob(".reference.sections/*/reference-*0.npz"))
    seen = count_images(monkeypatch)
    world.run(reference, *words)
    assert sum(seen) == missing and file.read_bytes() == before
    assert not list(world.root.glob(".reference*"))


def test_sections_of_other_batches_are_not_taken(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They round otherwise. They go with the folder, once a file is complete."""
    with pytest.MonkeyPatch.context() as patch:  # leave the sections
        patch.setattr(reference_loop, "save_real_side", lambda *_: None)
        patch.setattr(reference_loop.shutil, "rmtree", lambda *_: None)
        world.run(reference, "runtime.feature_batch=8")
    assert list(world.root.glob(".reference.sections/*/*.npz"))
    seen = count_images(monkeypatch)
    world.run(reference, "runtime.feature_batch=16")
    assert sum(seen) == 60 + 30
    assert not list(world.root.glob(".reference*"))
