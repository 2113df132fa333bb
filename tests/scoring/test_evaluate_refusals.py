"""What an evaluation refuses, and what it takes where it is named."""

import json
import shutil
from typing import Any

import numpy as np
import pytest

from pipeline import evaluate, reference
from pipeline.base.errors import UserError
from pipeline.scoring.references import Reference, load_reference, save_reference
from tests.evaluate_world import World, made, small_steps, world

__all__ = ["made", "small_steps", "world"]  # fixtures


def change_reference(world: World, **changes: Any) -> None:
    """Overwrite fields of the reference file."""
    old = vars(load_reference(world.root / "reference"))
    save_reference(world.root / "reference", Reference(**{**old, **changes}))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("pack_sha256", "0" * 64, "is of pack 00000000"),
        ("num_images", 59, "59 images"),
        ("extractor", "inception-v3-compat", "by inception-v3-compat, not"),
        ("mu", np.zeros(5), "is damaged"),
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


# --- another pack, by name ---------------------------------------------------------------------


def trained_elsewhere(world: World) -> None:
    """Make the samples those of a model trained on another recipe."""
    record = json.loads((world.root / "record").read_text())
    other = record | {"recipe": "adm", "sha256": {"images": "f" * 64, "labels": "f" * 64}}
    how = {"seed": 3, "nfe_mean": 8, "data": other}
    (world.root / "samples" / "sample.json").write_text(json.dumps(how))


def test_another_pack_is_scored_where_it_is_named(world: World) -> None:
    trained_elsewhere(world)
    with pytest.raises(UserError, match="or give across=shapes_16-box"):
        world.run(evaluate)
    with pytest.raises(UserError, match="across=shapes_16-adm is not the reference's pack"):
        world.run(evaluate, "across=shapes_16-adm")
    world.run(evaluate, "across=shapes_16-box")
    assert any("trained on shapes_16-adm (ffffffff" in note for note in world.result()["notes"])
    assert world.result()["class_accuracy"] is not None  # the classes are the same


def test_any_reference_that_names_its_pack_is_checked(world: World) -> None:
    trained_elsewhere(world)
    manifest = json.loads((world.root / "record").read_text())
    (world.root / "pack" / "manifest.json").write_text(json.dumps(manifest))
    (world.root / "reference").rename(world.root / "reference.npz")
    for name in ("pack", "pack/images.npy", "reference.npz"):
        for samples in (world.root / "samples", world.root / "samples/images.npy"):
            with pytest.raises(UserError, match="trained on shapes_16-adm"):
                world.compare(samples, world.root / name)
        actual = world.compare(world.root / "samples", world.root / name, "across=shapes_16-box")
        assert any("shapes_16-adm (ffffffff" in note for note in actual["notes"])


def test_a_pack_of_another_recipe_is_refused(world: World) -> None:
    record = json.loads((world.root / "record").read_text())
    (world.root / "pack" / "manifest.json").write_text(json.dumps(record))
    other = world.root / "other"
    shutil.copytree(world.root / "pack", other)
    world.compare(other, world.root / "pack")  # the same recipe
    (other / "manifest.json").write_text(json.dumps(record | {"recipe": "adm"}))
    for images in (other, other / "images.npy"):
        with pytest.raises(UserError, match="are shapes_16-adm, the reference is of shapes_16-box"):
            world.compare(images, world.root / "pack")
    actual = world.compare(other, world.root / "pack", "across=shapes_16-box")
    assert any("difference of these recipes" in note for note in actual["notes"])
