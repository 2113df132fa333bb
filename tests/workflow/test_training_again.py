"""What trains again, goes on or starts anew, through Snakemake."""

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.workflow.project import FROM_TRAIN, RUN, Project, assert_stopped, rules, until


@pytest.mark.slow
def test_the_content_of_the_first_weights_runs_train_again(
    copied: Callable[[], Project],
) -> None:
    project = copied()
    weights = project.folder / RUN / "train" / "weights.safetensors"
    (project.folder / "first").mkdir()
    first, other = project.folder / "first" / "w.safetensors", project.folder / "other.safetensors"
    shutil.copy2(weights, first)
    start, moved = "train.start=first/w.safetensors", "train.start=other.safetensors"
    assert project.jobs(set=start) == FROM_TRAIN
    done = project.snakemake("--", "train", set=start)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "starting at step 0 from first/w.safetensors" in done.stdout + done.stderr

    # the same content: nothing, whatever its place and time
    first.rename(other)
    other.touch()
    assert project.jobs("--", "train", set=moved) == []
    # other content, though older than all results; and none
    shutil.copy2(weights, other)
    os.utime(other, (1, 1))
    assert project.jobs("--", "train", set=moved) == ["train"]
    assert project.jobs("--", "train") == ["train"]

    # refusals before the first job
    absent = project.snakemake("--dry-run", set="train.start=w")
    assert_stopped(absent, "train.start=w is not a file: give a file of weights, a checkpoint")
    own = f"train.start={RUN}/train/weights.safetensors"
    assert_stopped(project.snakemake(set=own), "is a file that this training writes itself: copy")
    wide = f"{moved} model.channels=64"
    says = "is of another network: model.channels=32 (here 64); give these keys as they are there"
    assert_stopped(project.snakemake(set=wide), says)
    assert_stopped(project.plan(wide), says)


@pytest.mark.slow
def test_longer_training_goes_on(copied: Callable[[], Project]) -> None:
    project = copied()
    done = project.snakemake("--until", "train", set="train.images=704")
    output = done.stdout + done.stderr
    assert done.returncode == 0 and rules(output) == ["train"], output
    assert "resuming from step 20 of 22" in output


@pytest.mark.slow
def test_another_rate_starts_anew_and_the_old_one_is_kept(copied: Callable[[], Project]) -> None:
    project = copied()
    first = (project.folder / RUN / "train/weights.safetensors").read_bytes()
    changed = project.snakemake("--until", "train", set="train.lr=2e-4 train.images=64")
    assert changed.returncode == 0 and "resuming" not in changed.stdout + changed.stderr
    assert len(list((project.folder / RUN / "train/checkpoints").iterdir())) == 2
    back = project.snakemake("--until", "train")
    assert "resuming from step 20 of 20" in back.stdout + back.stderr
    assert (project.folder / RUN / "train/weights.safetensors").read_bytes() == first


@pytest.mark.slow
def test_a_killed_snakemake_goes_on_and_never_trains_twice(
    copied: Callable[[], Project], tmp_path: Path
) -> None:
    """SIGKILL of snakemake alone: its trainer lives on and the same command waits for it."""
    project = copied()
    long = "train.seed=5 train.images=1600 runtime.checkpoint_images=320"
    command = project.command("--until", "train", set=long)
    engine = subprocess.Popen(command, cwd=project.folder, env=project.environment)
    folder = project.folder / RUN / "train/checkpoints"
    old = {p.name for p in folder.iterdir()}
    until(lambda: [p for p in folder.glob("*/step-*.pt") if p.parent.name not in old])
    trainers = [p.pid for p in psutil.process_iter() if is_trainer(p, project.folder)]
    engine.send_signal(signal.SIGKILL)
    engine.wait()
    again = project.snakemake("--until", "train", set=long)
    output = again.stdout + again.stderr
    assert again.returncode == 0, output
    assert re.search(r"waiting: .* is in use by process \d+|resuming from step", output)
    assert len(trainers) == 1 and not psutil.pid_exists(trainers[0])
    rows = (project.folder / RUN / "train/curve.jsonl").read_text().splitlines()
    assert len(rows) == 25  # 1,600 images in rows of 64: none missing, none twice


def is_trainer(process: psutil.Process, folder: Path) -> bool:
    try:
        words = process.cmdline()
        return (
            "pipeline.train" in words
            and "pipeline.launch" not in words
            and (process.cwd() == str(folder) and "bash" not in words[0])
        )
    except psutil.Error:
        return False
