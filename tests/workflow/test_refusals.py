"""Bad input of the workflow: one sentence before the first job."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.workflow.project import ENGINE, Project, assert_stopped


def test_imagenet_dir_unset(fresh: Project) -> None:
    assert_stopped(
        fresh.snakemake(),
        "rules downsample, evaluate, reference, report, train need IMAGENET_DIR, which is not set",
    )
    assert not (fresh.folder / "results").exists()


@pytest.mark.slow
def test_imagenet_dir_empty_or_wrong(fresh: Project, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    fresh.environment["IMAGENET_DIR"] = str(tmp_path / "empty")
    assert_stopped(fresh.snakemake(), str(tmp_path / "empty"))
    fresh.environment["IMAGENET_DIR"] = str(tmp_path / "nowhere")
    assert_stopped(fresh.snakemake(), "nowhere is not a folder")
    assert not list((tmp_path / "empty").iterdir())


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("train.lrr=1", "unknown key train.lrr; did you mean train.lr?"),
        ("train.lr=fast", "train.lr='fast' is not valid"),
        ("data.resolution=12 model.channel_mult=[1,1,1,1]", "cannot be halved 3 times"),
    ],
)
def test_bad_keys(fresh: Project, word: str, sentence: str) -> None:
    assert_stopped(fresh.snakemake("--dry-run", set=word), sentence)
    assert_stopped(fresh.plan(word), sentence)


def test_bad_keys_by_config_and_in_the_file(fresh: Project) -> None:
    done = fresh.run([*ENGINE, "--config", "experiment=tiny", "train={lrr: 1}"])
    assert_stopped(done, "unknown key train.lrr; did you mean train.lr?")
    path = fresh.folder / "config.yaml"
    path.write_text(path.read_text().replace("  lr: 1.0e-4", "  lrr: 1.0e-4"))
    assert_stopped(fresh.snakemake(), "unknown key train.lrr; did you mean train.lr?")


def test_an_indivisible_batch_stops_before_training(copied: Callable[[], Project]) -> None:
    if shutil.which("nvidia-smi"):
        pytest.skip("needs a machine without a GPU to start two CPU ranks")
    project = copied()
    done = project.snakemake("--resources", "gpu=2", "--until", "train", set="train.batch=33")
    if os.cpu_count() == 1:
        pytest.skip("one core makes one rank")
    assert_stopped(done, "train.batch=33 cannot be divided over 2 processes")
