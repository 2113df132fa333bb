"""Stages that an experiment may have: guide, average, select, milestones; and chosen classes."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.base.files import sha256_file
from tests.workflow.conftest import copied_to
from tests.workflow.project import FROM_TRAIN, RUN, Project, assert_stopped, rules

GUIDED = "sample.runs=[{{}}, {{guidance: 3, guide: {{experiment: smoke, images: {}}}}}]"


@pytest.mark.slow
def test_an_experiment_that_guides_is_trained_before_it(finished: Project) -> None:
    after = ["evaluate", "guide", "report", "sample"]
    assert finished.jobs(set=GUIDED.format(64)) == after
    done = finished.plan(set=GUIDED.format(64))
    assert done.returncode == 0, done.stderr
    assert re.search(r"^guide  ", done.stdout, re.M) and "smoke-64: " in done.stdout
    done = finished.snakemake("--dry-run", set=GUIDED.format(64).replace("smoke", "smok"))
    assert_stopped(done, "sample.guide: no experiment 'smok' in config.yaml; did you mean smoke?")


@pytest.mark.slow
def test_a_guide_is_trained_once_and_again_if_it_changes(copied: Callable[[], Project]) -> None:
    project = copied()
    done = project.snakemake("--", "samples", set=GUIDED.format(64))
    assert done.returncode == 0, done.stdout + done.stderr
    (guided,) = project.folder.glob(f"{RUN}/sample/*by-smoke_64-*/seed0/sample.json")
    weights = project.folder / "results/smoke-64/train_8-box/train/weights.safetensors"
    assert json.loads(guided.read_text())["guide_sha256"] == sha256_file(weights)
    # The same training serves other samplers
    stronger = GUIDED.format(64).replace("guidance: 3", "guidance: 4")
    assert project.jobs(set=stronger) == ["evaluate", "report", "sample"]
    assert project.jobs(set=GUIDED.format(128)) == ["evaluate", "guide", "report", "sample"]


POWER = "train.ema=power train.ema_snapshot_images=256"


@pytest.mark.slow
def test_an_average_is_made_only_of_stored_ones(finished: Project) -> None:
    width = "sample.ema_width=0.07"
    assert finished.jobs(set=POWER) == FROM_TRAIN
    assert finished.jobs(set=f"{POWER} {width}") == ["average", *FROM_TRAIN]
    done = finished.snakemake("--dry-run", set=width)
    assert_stopped(done, "sample.ema_width=0.07 needs train.ema=power: give both, or null")


MILESTONES = "evaluate.milestones=true runtime.milestone_images=256"


@pytest.mark.slow
def test_scores_over_the_training_run_nothing_else(finished: Project) -> None:
    assert finished.jobs(set=MILESTONES) == ["milestones", "report"]
    assert finished.jobs(set="evaluate.milestone_num=30") == []  # read by that rule alone
    done = finished.plan(f"{MILESTONES} evaluate.milestone_num=30")
    assert "3 times 30 images = 90 images, 720 evaluations of networks" in done.stdout
    done = finished.snakemake("--dry-run", set="evaluate.milestones=true")
    assert_stopped(
        done, "nothing to score but the end of the training: set runtime.milestone_images"
    )


SEARCH = "select.ema_widths=[0.05,0.2] select.num=20 select.guidance=[1,3] select.max_tries=6"
FITTED = "{solver: learned, steps: 2, fit_images: 4}"
MORE = f"{POWER} {SEARCH} {MILESTONES} sample.runs=[{{classes: [1]}}, {{selected: true}}, {FITTED}]"


@pytest.fixture(scope="module")
def more(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The finished project, and one run of it with averages, a search, milestones, classes and a
    fitted solver.
    """
    project = copied_to(tmp_path_factory.mktemp("more"), tiny_run)
    done = project.snakemake(set=MORE)
    assert done.returncode == 0, done.stdout + done.stderr
    assert rules(done.stdout + done.stderr) == sorted(
        ["train", "milestones", "select", "solver", *["sample", "evaluate"] * 3, "report"]
    )
    return project


def summary_of(project: Project) -> str:
    """The summary without its line ends."""
    return " ".join((project.folder / RUN / "report/summary.txt").read_text().split())


@pytest.mark.slow
def test_nothing_of_them_is_left_to_do(more: Project) -> None:
    assert more.jobs(set=MORE) == []
    assert more.jobs(set=f"{MORE} evaluate.kid_subsets=7") == [*["evaluate"] * 3, "report"]
    # search and milestones
    assert (more.folder / RUN / "report/index.html").read_text().count("data:image/png") == 6
    assert more.jobs() == FROM_TRAIN


@pytest.mark.slow
def test_chosen_classes_are_sampled_scored_and_named_in_the_report(more: Project) -> None:
    [labels] = (more.folder / RUN / "sample").glob("*classes1*/seed0/labels.npy")
    assert set(np.load(labels)) == {1}
    assert "sample.classes: 1" in (more.folder / RUN / "report/table.html").read_text()


@pytest.mark.slow
def test_a_solver_is_fitted_before_its_samples(more: Project) -> None:
    """Another number of samples, another seed or class of them fits none again."""
    run = more.folder / RUN
    fitted = json.loads((run / "solver/learned-2-g2.json").read_text())
    about = json.loads((run / "sample/learned-2-g2/seed0/sample.json").read_text())
    assert (fitted["num"], about["nfe_mean"]) == (4, 4)
    assert fitted["weights"] == about["weights_sha256"]
    # In the last sampler alone
    again = ["evaluate", "report", "sample"]
    for key, jobs in (("fit_seed: 5", sorted([*again, "solver"])), ("num: 30", again)):
        changed = MORE.replace("steps: 2", f"steps: 2, {key}")
        assert more.jobs(set=changed) == jobs


@pytest.mark.slow
def test_a_search_after_the_training(more: Project) -> None:
    """A key of the search runs the search and what follows, no training."""
    run = more.folder / RUN
    choice = json.loads((run / "select/choice.json").read_text())
    about = json.loads((run / "sample/euler-4-select/seed0/sample.json").read_text())
    assert about["guidance"] == choice["chosen"]["guidance"]
    assert about["weights_sha256"] == sha256_file(run / "select/weights.safetensors")
    assert (run / "report/surface.png").read_bytes() == (run / "select/surface.png").read_bytes()
    summary = summary_of(more)
    assert "6 tries of 20 samples with seed 1000000: EMA width" in summary
    assert "The chosen one on reported seed 0: Fréchet distance" in summary
    assert "not comparable with reported ones" in summary

    after = ["evaluate", "report", "sample", "select"]
    for word in ("select.num=21", "select.seeds=[4]", "select.max_tries=8"):
        assert more.jobs(set=f"{MORE} {word}") == after


@pytest.mark.slow
def test_scores_over_the_training_are_in_the_report(more: Project) -> None:
    """A key of theirs runs them and the report."""
    lines = (more.folder / RUN / "milestones/curve.jsonl").read_text().splitlines()
    assert [json.loads(line)["images"] for line in lines] == [256, 512, 640]
    summary = summary_of(more)
    assert "Over the training, Fréchet distance" in summary and "20 samples with seed 0" in summary
    assert more.jobs(set=f"{MORE} evaluate.milestone_num=21") == ["milestones", "report"]


@pytest.mark.slow
def test_another_width_trains_nothing(more: Project) -> None:
    done = more.snakemake("--", "samples", set=f"{POWER} sample.ema_width=0.07")
    assert done.returncode == 0, done.stdout + done.stderr
    assert rules(done.stdout + done.stderr) == ["average", "sample", "samples"]
    assert "average: width 0.07 at 640 images, its profile met to" in done.stdout + done.stderr
    (log,) = (more.folder / RUN / "average").glob("ema0.07-640.log")
    assert "reading 6 of 6 files" in log.read_text()
    for change in ("sample.ema_width=0.09", "sample.ema_width=0.07 sample.ema_images=256"):
        after = ["average", "evaluate", "report", "sample"]
        assert more.jobs(set=f"{POWER} {change}") == after
    runs = "sample.runs=[{ema_width: 0.07}, {ema_width: 0.07, steps: 2}, {ema_width: 0.08}]"
    expected = ["average", *["evaluate"] * 3, "report", "sample", "sample"]
    assert more.jobs(set=f"{POWER} {runs}") == expected
