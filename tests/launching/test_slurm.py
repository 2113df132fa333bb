"""What a job learns from Slurm."""

import os
import signal
import time
from pathlib import Path

import pytest

from pipeline.base.errors import UserError
from pipeline.launching import slurm
from pipeline.launching.launchers import Torchrun
from tests.conftest import resolved


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        ("59", 59),
        ("1:00", 60),
        ("1:02:03", 3723),
        ("2-00:00:10", 172810),
        ("UNLIMITED", None),
        ("INVALID", None),
        ("", None),
    ],
)
def test_time_left_as_slurm_writes_it(said: str, seconds: float | None) -> None:
    assert slurm.in_seconds(said) == seconds


def test_the_end_of_the_job_is_told_by_newer_versions() -> None:
    left = slurm.seconds_left({"SLURM_JOB_END_TIME": str(time.time() + 100)})
    assert left is not None and 99 < left <= 100


def stand_in(folder: Path, name: str, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command of Slurm that prints something."""
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_a_warning_comes_before_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in(tmp_path, "squeue", "echo 0:06", monkeypatch)
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    told: list[float] = []
    signal.signal(signal.SIGUSR1, lambda *_: told.append(time.monotonic()))
    start = time.monotonic()
    with slurm.warned(resolved().launch):
        while not told:
            time.sleep(0.01)
    assert 2.9 < told[0] - start < 5.9
    assert "Slurm gives this job 6 s" in capsys.readouterr().out


def test_no_limit_no_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, "squeue", "echo UNLIMITED", monkeypatch)
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    assert slurm.seconds_left() is None
    with slurm.warned(resolved().launch):
        pass


def test_nodes_meet_at_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, "scontrol", "echo n3; echo n4", monkeypatch)
    environment = {"SLURM_STEP_NODELIST": "n[3-4]", "SLURM_JOB_ID": "41234567"}
    assert slurm.meeting_place(environment) == "n3:25072"
    second = slurm.meeting_place(environment | {"SLURM_STEP_ID": "1"})
    assert second == "n3:25073"  # a step of the same job beside the first
    stand_in(tmp_path, "scontrol", "exit 1", monkeypatch)
    with pytest.raises(UserError, match="give launch.rdzv_endpoint"):
        slurm.meeting_place(environment)


def test_one_task_a_node_is_told_from_others() -> None:
    two = {"SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NUM_TASKS": "2"}
    assert slurm.one_task_a_node(2, two)
    assert not slurm.one_task_a_node(2, two | {"SLURM_STEP_NUM_TASKS": "8"})
    assert not slurm.one_task_a_node(2, {})


def test_a_job_of_one_node_stands_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meant, torchrun = resolved("launcher=torchrun", "launch.nnodes=2").launch, Torchrun()
    assert torchrun.settled(meant) == meant  # no Slurm: an error that asks for the endpoint
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.delenv("SLURM_JOB_NUM_NODES", raising=False)
    stand_in(tmp_path, "squeue", "echo 1", monkeypatch)
    alone = torchrun.settled(meant)
    assert (alone.launcher, alone.nnodes) == ("standalone", 1)
    stand_in(tmp_path, "squeue", "echo 2", monkeypatch)
    assert torchrun.settled(meant) == meant and torchrun.is_started_by_srun(meant)
    stand_in(tmp_path, "scontrol", "echo n3; echo n4", monkeypatch)
    for name, value in {"NODES": "2", "TASKS": "2"}.items():
        monkeypatch.setenv(f"SLURM_STEP_NUM_{name}", value)
    monkeypatch.setenv("SLURM_STEP_NODELIST", "n[3-4]")
    joined = torchrun.settled(meant)
    assert joined.rdzv_endpoint == "n3:12112" and not torchrun.is_started_by_srun(joined)


def test_tasks_of_srun_are_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, "scontrol", "echo n3; echo n4", monkeypatch)
    step = {"SLURM_JOB_ID": "5", "SLURM_STEP_NODELIST": "n[3-4]", "SLURM_STEP_NUM_NODES": "2"}
    step |= {"SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "6", "SLURM_LOCALID": "2"}
    assert slurm.ranks_of_step(step) == {
        "RANK": "6",
        "LOCAL_RANK": "2",
        "WORLD_SIZE": "8",
        "MASTER_ADDR": "n3",
        "MASTER_PORT": "12080",
    }
    alone = slurm.ranks_of_step(step | {"SLURM_STEP_NUM_NODES": "1"})
    assert alone["MASTER_ADDR"] == "127.0.0.1"
    assert slurm.ranks_of_step(step | {"RANK": "0"}) == {}
    assert slurm.ranks_of_step(step | {"SLURM_STEP_NUM_TASKS": "1"}) == {}
    assert slurm.ranks_of_step({"SLURM_JOB_ID": "5", "SLURM_NTASKS": "8"}) == {}  # a batch script
