"""Images and packs that move, are deleted, damaged or exchanged under finished results."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.bench.photos import write_photos
from pipeline.config import paths
from pipeline.workflow.current_pack import pack_problem
from tests.conftest import resolved, write_pack
from tests.workflow.project import FROM_TRAIN, Project, assert_stopped, copy_code, rules


def test_a_drawn_pack_that_is_gone_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = resolved("experiment=tiny")
    folder = paths.pack_folder(config)
    record = write_pack(folder, num=4, size=8)
    assert pack_problem(config) == ""  # nothing was made of it yet
    record.write(paths.record_file(config))
    assert pack_problem(config) == ""
    shutil.rmtree(folder)
    assert f"there is no pack in {folder}, but the results here are of one" in pack_problem(config)


def test_moved_images_and_pack_run_nothing(copied: Callable[[], Project], tmp_path: Path) -> None:
    project = copied()
    shutil.move(tmp_path / "images", tmp_path / "elsewhere")
    project.environment["IMAGENET_DIR"] = str(tmp_path / "elsewhere")
    assert project.jobs() == []


@pytest.mark.slow
def test_a_deleted_pack_is_made_again_and_nothing_else(
    copied: Callable[[], Project], tmp_path: Path
) -> None:
    project = copied()
    shutil.rmtree(tmp_path / "images" / "train_8")
    assert project.jobs() == []
    stopped = project.snakemake(set="evaluate.seed=1")
    assert stopped.returncode != 0
    assert "run `make data`" in stopped.stdout + stopped.stderr
    assert "Traceback" not in stopped.stdout + stopped.stderr
    # before the first job, and in plan
    folder = tmp_path / "images/train_8/box"
    told = f"there is no pack in {folder}, but the results here are of one (results/data/train_8"
    assert "rule evaluate" not in stopped.stdout + stopped.stderr
    assert_stopped(stopped, told)
    assert_stopped(project.snakemake(), told)
    assert_stopped(project.plan(), told)
    made = project.snakemake("--forcerun", "downsample", "--", "downsample")
    assert made.returncode == 0, made.stderr
    assert (tmp_path / "images" / "train_8/box/manifest.json").exists()
    # the record is equal, and no job was begun that would have lost its former results
    assert project.jobs() == []
    assert project.jobs(set="evaluate.seed=1") == ["evaluate", "report"]


@pytest.mark.slow
def test_a_key_that_checks_the_pack_makes_nothing_else_again(
    copied: Callable[[], Project],
) -> None:
    project, words = copied(), "downsample.allow_bad=1"
    assert "train" in project.jobs(set=words)  # as Snakemake would have it
    done = project.snakemake(set=words)
    assert_stopped(done, "rule downsample must run again")
    assert "first run `make data` with the same keys" in done.stderr
    made = project.snakemake("--", "data", set=words)
    assert made.returncode == 0 and "downsample" in rules(made.stdout + made.stderr), made.stderr
    assert project.jobs(set=words) == []


@pytest.mark.slow
def test_reference_statistics_are_shared_between_checkouts(
    copied: Callable[[], Project], tmp_path: Path
) -> None:
    statistics = "results/reference/train_8-box-efficientnet-lite0.npz"
    first = copied()
    (first.folder / statistics).unlink()
    shutil.copytree(first.folder, tmp_path / "second")
    second = Project(tmp_path / "second", tmp_path / "images")
    (tmp_path / "cache").mkdir()
    for project, said in ((first, "Moving output file"), (second, "Symlinking output file")):
        project.environment["SNAKEMAKE_OUTPUT_CACHE"] = str(tmp_path / "cache")
        done = project.snakemake("--cache", "reference", "--", statistics)
        assert done.returncode == 0 and f"{said} {statistics}" in done.stderr, done.stderr
        assert (project.folder / statistics).resolve().parent == tmp_path / "cache"
    assert "Moving output file" not in done.stderr


@pytest.mark.slow
def test_another_image_set_is_told_before_the_first_job(
    copied: Callable[[], Project], tmp_path: Path
) -> None:
    project = copied()
    write_photos(tmp_path / "other", per_class=9, size=40)
    project.environment["IMAGENET_DIR"] = str(tmp_path / "other")
    absent = f"there is no pack in {tmp_path / 'other'}/train_8/box"
    assert_stopped(project.snakemake(), absent)
    assert_stopped(project.plan(), absent)
    assert absent in project.snakemake("--dry-run").stderr
    # its pack is made elsewhere
    elsewhere = Project(copy_code(tmp_path / "elsewhere"), tmp_path / "other")
    made = elsewhere.snakemake("--", "downsample")
    assert made.returncode == 0, made.stderr
    different = "is not the one that the results here are of"
    assert_stopped(project.snakemake(), different)
    assert_stopped(project.plan(), different)
    # make data takes it over, and everything follows
    made = project.snakemake("--forcerun", "downsample", "--", "downsample")
    assert made.returncode == 0, made.stderr
    assert project.jobs() == sorted([*FROM_TRAIN, "reference"])
    # without a place of packs nothing is said
    del project.environment["IMAGENET_DIR"]
    assert project.jobs() == sorted([*FROM_TRAIN, "reference"])


def test_corrupt_images_are_all_named(copied: Callable[[], Project], tmp_path: Path) -> None:
    project = copied()
    victims = sorted((tmp_path / "images/train").rglob("*.JPEG"))[3:5]
    victims[0].write_bytes(b"not a jpeg")
    victims[1].write_bytes(victims[1].read_bytes()[:300])
    shutil.rmtree(tmp_path / "images" / "train_8")
    done = project.snakemake("--forcerun", "downsample", "--", "downsample")
    assert_stopped(done, "downsample.allow_bad")
    for victim in victims:
        assert victim.name in done.stdout + done.stderr
    assert not (tmp_path / "images/train_8/box/images.npy").exists()
