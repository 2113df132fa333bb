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
from pipeline.scoring import kept_features
from pipeline.scoring.extractors import Extractor
from pipeline.scoring.keepers import stream
from pipeline.scoring.kept_features import SEED, kept_rows, load_real_side, spools
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


def assert_close(one: Any, other: Any) -> None:
    """Equal but for the rounding of features that were made in other batches."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_close(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for pair in zip(one, other, strict=True):
            assert_close(*pair)
    elif isinstance(one, float):
        assert one == pytest.approx(other, rel=1e-5, abs=1e-6)
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


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("size", [4, 7, 64])
def test_the_ranks_write_one_file(tmp_path: Path, world_size: int, size: int) -> None:
    """The features in the order of the rows, whatever the ranks and the batches."""
    extractor, config = small(), load_step(["experiment=tiny"], ())[0]
    runtime = config.runtime.model_copy(update={"feature_batch": size})
    images = np.random.default_rng(0).integers(0, 256, (50, 16, 16, 3), np.uint8)

    def write(group: Any) -> bytes:
        with spools(tmp_path / "file", 50, size, extractor.width, group) as (real, noise):
            for spool in (real, noise):
                features_of = extractor.of(lambda rows: images[rows])
                rows = np.arange(len(spool.wanted))
                stream(features_of, runtime, group, "x", rows, [spool])
            content = b"".join([*real.parts(), *noise.parts()]) if group.first else b""
            group.barrier()
        return content

    content = np.frombuffer(on_ranks(world_size, write), np.float32).reshape(-1, extractor.width)
    wanted = extractor.features(images)[0].numpy()
    np.testing.assert_allclose(content[:50], wanted[kept_rows(50)], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(content[50:], wanted[:25], rtol=1e-5, atol=1e-6)
    assert not list(tmp_path.iterdir())


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
from pipeline.scoring import kept_features
from tests.evaluate_world import reference, use_small, world_at
use_small(pytest.MonkeyPatch())
whole = kept_features.Spool.parts
def killed(spool):
    for part in whole(spool):
        yield part
        os.kill(os.getpid(), signal.SIGKILL)
kept_features.Spool.parts = killed
world_at(Path(sys.argv[1])).run(reference, "runtime.feature_batch=8")
"""


@pytest.mark.slow
def test_a_killed_reference_leaves_no_half_file(world: World) -> None:
    file = world.root / "reference"
    before = file.read_bytes()
    file.unlink()
    done = subprocess.run(
        [sys.executable, "-c", KILLED, world.root], cwd=ROOT, env={**os.environ, "PYTHONPATH": "."}
    )
    assert done.returncode == -signal.SIGKILL
    assert not file.exists() and list(world.root.glob(".reference.*"))
    world.run(reference)
    assert file.read_bytes() == before
