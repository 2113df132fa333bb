"""The search after the training: what it writes, that a kill changes nothing, who takes it."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline import average, reference, sample, select, train
from pipeline.base.errors import UserError
from pipeline.base.files import sha256_file
from pipeline.config.load import load_step
from pipeline.reporting.records import SampleAbout
from pipeline.reporting.trials import Choice, Trial
from pipeline.training.weights_file import load_weights, read_about
from tests import without_torch
from tests.conftest import ROOT, write_pack
from tests.on_ranks import on_ranks
from tests.test_train import difference, words

POWER = ["train.ema=power", "train.images=240", "train.ema_snapshot_images=60"]
SEARCH = [
    *("experiment=tiny", "train.ema=power", "runtime.device=cpu", "sample.steps=2"),
    *("select.num=10", "select.seeds=[5,6]", "runtime.sample_batch=8"),
]
GOLDEN = ["select.ema_widths=[0.04,0.2]", "select.guidance=[1,2]", "select.max_tries=6"]
GRID = ["select.search=grid", "select.guidance=[2,1]", "select.intervals=[[0,1],[0.5,1]]"]


@pytest.fixture(scope="module")
def world(pack: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training with stored averages, and the reference of its pack."""
    root = tmp_path_factory.mktemp("select")
    train.main(words(pack, root / "train", *POWER))
    paths = [f"record={pack}/manifest.json", f"out={root}/reference.npz", f"data.path={pack}"]
    reference.main(["experiment=tiny", "runtime.device=cpu", *paths])
    shutil.copy(pack / "manifest.json", root / "record.json")
    return root


def arguments(world: Path, out: Path, *more: str) -> list[str]:
    """The command line of a search."""
    paths = [f"weights={world}/train/weights.safetensors", f"record={world}/record.json"]
    return [*SEARCH, *paths, f"reference={world}/reference.npz", f"out={out}", *more]


@pytest.fixture(scope="module")
def golden(world: Path) -> Path:
    """A search along both axes that nobody disturbed."""
    select.main(arguments(world, world / "golden", *GOLDEN))
    return world / "golden"


def test_the_choice_is_the_best_try_and_its_average(world: Path, golden: Path) -> None:
    choice = Choice.read(golden / "choice.json")
    assert choice.searched == ["ema_width", "guidance"] and len(choice.tries) == 6
    assert [t.guidance for t in choice.tries[:3]] == [1.5] * 3
    assert {t.ema_width for t in choice.tries[3:]} == {choice.chosen.ema_width}
    assert choice.chosen.distance == min(t.distance for t in choice.tries[3:])
    assert (choice.num, choice.seeds, choice.images) == (10, [5, 6], 240)
    assert choice.evaluations == 6 * 2 * 10 * 2 * 2
    assert (golden / "surface.png").stat().st_size > 10_000
    assert not list(golden.glob("trials/*.safetensors"))

    # The average that rule `average` makes of that width
    width = choice.chosen.ema_width
    file = world / "average.safetensors"
    weights = f"weights={world}/train/weights.safetensors"
    average.main([weights, f"out={file}", f"sample.ema_width={width}"])
    chosen = load_weights(golden / "weights.safetensors")
    assert difference(load_weights(file), chosen) == 0
    assert read_about(file) == read_about(golden / "weights.safetensors")


def test_a_try_is_the_mean_of_its_seeds(golden: Path) -> None:
    trials = [Trial.read(path) for path in golden.glob("trials/*.json")]
    assert len(trials) == 12
    for attempt in Choice.read(golden / "choice.json").tries:
        key = attempt.ema_width, attempt.guidance
        distances = [t.distance for t in trials if (t.ema_width, t.guidance) == key]
        assert len(distances) == 2
        assert attempt.distance == pytest.approx(sum(distances) / 2)


def test_launchers_of_what_scores_need_no_torch(world: Path, pack: Path, tmp_path: Path) -> None:
    without_torch.preflight("select", *arguments(world, tmp_path / "out", *GOLDEN))
    data = [f"record={world}/record.json", f"data.path={pack}", "experiment=tiny"]
    without_torch.preflight("reference", *data, f"out={tmp_path}/reference.npz")
    weights = f"weights={world}/train/weights.safetensors"
    sample.main(["experiment=tiny", "sample.num=8", weights, f"out={tmp_path}/samples"])
    words = [*data, f"samples={tmp_path}/samples", f"reference={world}/reference.npz"]
    without_torch.preflight("evaluate", *words, f"out={tmp_path}/out.json")


@pytest.mark.slow
def test_killed(world: Path, golden: Path, tmp_path: Path) -> None:
    """Killed after the first trials, the same command makes the others, and the same files."""
    command = [sys.executable, "-m", "pipeline.select", *arguments(world, tmp_path, *GOLDEN)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        while len(list(tmp_path.glob("trials/*.json"))) < 3:
            assert process.poll() is None
            time.sleep(0.001)
        process.kill()
    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("trials/*.json")}
    assert 3 <= len(times) < 12 and not (tmp_path / "choice.json").exists()
    select.main(arguments(world, tmp_path, *GOLDEN))
    assert all(path.stat().st_mtime_ns == then for path, then in times.items())
    for name in ("choice.json", "weights.safetensors", "config.json"):
        assert (tmp_path / name).read_bytes() == (golden / name).read_bytes()


@pytest.mark.slow
def test_two_ranks(world: Path, golden: Path, tmp_path: Path) -> None:
    on_ranks(2, "pipeline.select", *arguments(world, tmp_path, *GOLDEN))
    one, two = (Choice.read(folder / "choice.json") for folder in (golden, tmp_path))
    assert [(t.ema_width, t.guidance) for t in one.tries] == [
        (t.ema_width, t.guidance) for t in two.tries
    ]
    for first, second in zip(one.tries, two.tries, strict=True):
        assert second.distance == pytest.approx(first.distance, rel=1e-6)
        assert second.evaluations == first.evaluations
    names = [{p.name for p in (f / "trials").iterdir()} for f in (golden, tmp_path)]
    assert names[0] == names[1]


def test_a_sampler_takes_the_choice(world: Path, golden: Path, tmp_path: Path) -> None:
    paths = [f"weights={golden}/weights.safetensors", f"choice={golden}/choice.json"]
    keys = ["experiment=tiny", "sample.selected=true", "select.guidance=[1,2]", "sample.num=4"]
    sample.main([*keys, *paths, f"out={tmp_path}", "runtime.device=cpu"])
    about, choice = SampleAbout.read(tmp_path / "sample.json"), Choice.read(golden / "choice.json")
    assert about.sampler == "euler-4-select"
    assert about.guidance == choice.chosen.guidance
    assert about.selection and about.selection.tries == len(choice.tries)
    assert about.selection.extractor == choice.extractor is not None
    assert about.config is not None
    assert about.config["sample"]["ema_width"] == choice.chosen.ema_width
    weights = f"weights={world}/train/weights.safetensors"
    with pytest.raises(UserError, match="averaged with a width of 0.05, not sample.ema_width="):
        sample.main([*keys, weights, paths[1], f"out={tmp_path}"])
    with pytest.raises(UserError, match=r"choice\.json is missing"):
        sample.main([*keys, weights, f"choice={tmp_path}/choice.json", f"out={tmp_path}"])


@pytest.mark.slow
def test_a_grid_of_weights_and_intervals_needs_no_averages(world: Path, tmp_path: Path) -> None:
    weights = world / "train/weights.safetensors"
    select.main(arguments(world, tmp_path, *GRID, f"sample.guide={weights}"))
    choice = Choice.read(tmp_path / "choice.json")
    assert choice.searched == ["guidance", "guidance_interval"]
    assert [t.guidance for t in choice.tries] == [2, 2, 1, 1]
    assert choice.tries[2].distance == choice.tries[3].distance  # not guided at all
    assert not (tmp_path / "weights.safetensors").exists()
    assert choice.chosen.ema_width is None
    assert choice.guide == choice.weights == sha256_file(weights)


def test_refused_before_the_first_try(world: Path, tmp_path: Path) -> None:
    def refused(sentence: str, *more: str) -> None:
        with pytest.raises(UserError, match=sentence):
            select.preflight(*load_step(arguments(world, tmp_path, *more), select.STEP.words), 1)

    refused("select is null, so nothing is chosen", "select=null")
    refused("select.seeds and sample.seeds both hold 5", *GOLDEN, "sample.seeds=[5]")
    refused("holds no averages after 96 images", *GOLDEN, "sample.ema_images=96")
    write_pack(tmp_path / "other", num=4, size=8)
    refused("is of pack .* not of", *GRID, f"record={tmp_path}/other/manifest.json")
    assert not (tmp_path / "trials").exists()
