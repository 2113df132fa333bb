"""Any images against any reference."""

import json
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
from PIL import Image

from pipeline import evaluate, reference
from pipeline.base.errors import UserError
from pipeline.scoring import image_sets
from pipeline.scoring.references import load_reference
from tests.conftest import ROOT
from tests.evaluate_world import World, made, small_steps, world

__all__ = ["made", "small_steps", "world"]  # fixtures


@pytest.mark.slow
def test_as_commands(world: World) -> None:
    """Any images against any others by the real EfficientNet, and a refusal in one line."""

    def command(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "pipeline.evaluate", *words, "runtime.device=cpu"],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )

    words = (f"images={world.root / 'samples'}", f"reference={world.root / 'pack'}")
    more = ("evaluate.metrics=[kid]", "evaluate.extractor=efficientnet-lite0")
    done = command("data.source=shapes", *words, *more, f"out={world.root / 'm'}")
    assert done.returncode == 0, done.stderr
    assert json.loads((world.root / "m").read_text())["metrics"][0]["name"] == "kid_efflite0_96"
    assert "Kernel distance, EfficientNet-Lite0 at 96 px: " in done.stdout
    (world.root / "samples" / "sample.json").write_text("{")
    refused = command("data.source=shapes", *words, *more)
    assert refused.returncode == 2 and "sample.json is damaged" in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_a_pack_folder_gives_the_same_scores_as_its_reference_file(world: World) -> None:
    """Against the pack itself, its copies as .npy, .npz and PNGs, and with ADM's statistics."""
    world.run(evaluate)
    metrics = world.result()["metrics"]
    images, root = world.images("pack"), world.root
    np.save(root / "real.npy", images)
    np.savez_compressed(root / "real.npz", images=images)
    statistics = load_reference(root / "reference")
    np.savez(root / "adm.npz", arr_0=images, mu=statistics.mu, sigma=statistics.sigma)
    (root / "files" / "deep").mkdir(parents=True)
    for number, image in enumerate(images):
        folder = root / "files" / ("deep" if number % 2 else "")
        Image.fromarray(image).save(folder / f"{number:03d}.png")
    for name in ("pack", "real.npy", "real.npz", "adm.npz"):
        actual = world.compare(root / "samples", root / name)
        for one, other in zip(actual["metrics"], metrics, strict=True):
            bracket = other.get("bracket", {})
            close = partial(pytest.approx, rel=1e-6, abs=1e-6 * bracket.get("ceiling", 0))
            assert one["value"] == close(other["value"]), name
            assert one.get("bracket", {}) == close(bracket)
    actual = world.compare(root / "files", root / "real.npy", "evaluate.metrics=[fid]")
    assert actual["metrics"][0]["value"] == pytest.approx(0, abs=1e-6)
    opened = image_sets.open_images(root / "files")
    by_path = [*range(0, 60, 2), *range(1, 60, 2)]  # deep/001.png comes after 058.png
    np.testing.assert_array_equal(opened.read(np.arange(60)), images[by_path])


def test_statistics_alone_give_the_distance_and_say_what_is_left_out(world: World) -> None:
    world.run(evaluate)
    wanted = world.result()["metrics"][0]["value"]
    plain = world.root / "plain.npz"
    reference.main([*world.words, f"reference={world.root / 'reference'}", f"export={plain}"])
    assert sorted(np.load(plain)) == ["mu", "sigma"]
    result = world.compare(world.root / "samples" / "images.npy", plain)
    (actual,) = result["metrics"]
    assert actual["value"] == pytest.approx(wanted, rel=1e-10) and "bracket" not in actual
    assert any("statistics and no images" in note for note in result["notes"])
    assert any("does not say of which images" in note for note in result["notes"])
    assert result["neighbours"] is None and not list(world.root.glob("*any*.png"))


def test_a_foreign_reference_file_scores_samples_too(world: World) -> None:
    plain = world.root / "plain.npz"
    reference.main([*world.words, f"reference={world.root / 'reference'}", f"export={plain}"])
    world.run(evaluate, f"reference={plain}")
    assert any("does not say of which images" in note for note in world.result()["notes"])
    assert world.result()["protocol"]["reference"]["flipped"] is None


@pytest.mark.parametrize(
    ("images", "against", "message"),
    [
        ("samples", "small.npy", "16 x 16 px, but at least two of 8 x 8 px"),
        ("small.npy", "reference", "8 x 8 px, but at least two of 16 x 16 px"),
        ("samples", "nowhere.npz", "nowhere.npz is missing"),
        ("empty", "pack", "holds no images"),
        ("samples", "wide.npz", "by a network with 9 features, not efficientnet-lite0"),
    ],
)
def test_comparisons_that_do_not_fit_are_refused(
    world: World, images: str, against: str, message: str
) -> None:
    np.save(world.root / "small.npy", np.zeros((9, 8, 8, 3), np.uint8))
    np.savez(world.root / "wide.npz", mu=np.zeros(9), sigma=np.eye(9))
    (world.root / "empty").mkdir()
    (world.root / "reference").rename(world.root / "reference.npz")
    name = f"{against}.npz" if against == "reference" else against
    with pytest.raises(UserError, match=message):
        world.compare(world.root / images, world.root / name)


@pytest.mark.parametrize("about", [{"data": "photos"}, {"data": {}}, {"data": None}, {}])
def test_descriptions_by_other_programs_do_not_matter(world: World, about: dict) -> None:
    (world.root / "samples" / "sample.json").write_text(json.dumps(about))
    actual = world.compare(world.root / "samples", world.root / "pack")
    assert actual["sample"] == about
    (world.root / "samples" / "sample.json").write_text("[]")
    with pytest.raises(UserError, match=r"sample.json is not a mapping"):
        world.compare(world.root / "samples", world.root / "pack")


def test_what_can_only_fail_is_refused_at_once(world: World) -> None:
    plain = world.root / "plain.npz"
    reference.main([*world.words, f"reference={world.root / 'reference'}", f"export={plain}"])
    with pytest.raises(UserError, match="needs real images, and the reference holds statistics"):
        world.compare(world.root / "samples", plain, "evaluate.metrics=[kid,prc]")
    for step in (evaluate, reference):
        with pytest.raises(UserError, match="is a folder: give the name of a file"):
            world.run(step, f"out={world.root}")
        with pytest.raises(UserError, match=r"plain.npz/x cannot be written \(.*: name another"):
            world.run(step, f"out={plain / 'x'}")


def test_a_comparison_needs_a_reference(world: World) -> None:
    with pytest.raises(UserError, match="images=PATH needs reference=PATH"):
        evaluate.main([*world.words, f"images={world.root / 'samples'}"])


def test_all_files_of_a_folder_are_scored_and_notes_told(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same images as PNG, BMP and TIFF in one folder; then one as JPEG, one under no suffix."""
    folder = world.root / "files"
    folder.mkdir()
    for number, image in enumerate(world.images("samples")):
        suffix = ("png", "bmp", "tif")[number % 3]
        Image.fromarray(image).save(folder / f"{number:03d}.{suffix}")
    actual = world.compare(folder, world.root / "pack")
    array = world.compare(world.root / "samples/images.npy", world.root / "pack")
    assert actual["metrics"] == array["metrics"]
    Image.fromarray(world.images("samples")[0]).save(folder / "000.png", "JPEG")
    (folder / "notes.txt").write_text("no image")
    notes = world.compare(folder, world.root / "pack")["notes"]
    assert sum("1 of the 21 images" in note and "are JPEGs" in note for note in notes) == 1
    assert sum("are not scored: notes.txt" in note for note in notes) == 1
    assert "note: 1 of the 21 images" in capsys.readouterr().out
    (folder / "000.png").rename(folder / "000")
    with pytest.raises(UserError, match=r"1 files of .* hold images .*\(000\)"):
        world.compare(folder, world.root / "pack")
