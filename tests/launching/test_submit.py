"""Ranks through submitit's local executor: the same weights, saved when told to stop."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import torch
from submitit.slurm.slurm import SlurmJob

from pipeline.launching import leases, submit
from tests import slurm
from tests.conftest import ROOT, resolved
from tests.on_ranks import train_on_ranks
from tests.test_train import outcome, words

LONG = ("train.images=1800", "runtime.checkpoint_images=60")


def start(pack: Path, out: Path, *more: str, folder: str = "") -> psutil.Popen:
    """A training of two ranks under the launcher; what it prints goes to out/printed."""
    out.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pipeline.launch", "--gpus", "2"]
    command += [
        f"launch.folder={folder or out / 'jobs'}",
        "--",
        "-m",
        "pipeline.train",
        *words(pack, out, *more),
    ]
    with (out / "printed").open("ab") as file:
        return psutil.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)


def printed(out: Path) -> str:
    """All that the launchers of a folder have printed."""
    return (out / "printed").read_text()


@pytest.mark.slow
def test_whatever_ends_its_ranks_a_training_goes_on(
    pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the same command until its end: the weights are those of a run that nothing disturbed."""
    plain, out = tmp_path / "plain", tmp_path / "out"
    train_on_ranks(2, words(pack, plain, *LONG))
    monkeypatch.setenv("PIPELINE_GPU_IDS", "0,1")
    monkeypatch.setenv("PIPELINE_LEASE_DIR", str(tmp_path / "leases"))
    end_the_launcher(pack, out, signal.SIGTERM)
    end_the_launcher(pack, out, signal.SIGKILL)
    preempt(pack, out)
    weights, expected = outcome(out)[0], outcome(plain)[0]
    assert all(torch.equal(weights[name], value) for name, value in expected.items())


def by_submitit(pack: Path, out: Path) -> tuple[psutil.Popen, list[psutil.Process]]:
    """The training under submitit, with a checkpoint since it began; and all its processes."""
    before = set(out.glob("checkpoints/*/step-*"))
    run = start(pack, out, *LONG, "launch.launcher=submitit_local")
    while not set(out.glob("checkpoints/*/step-*")) - before:
        assert run.poll() is None, printed(out)
        time.sleep(0.01)
    return run, run.children(recursive=True)


def end_the_launcher(pack: Path, out: Path, number: signal.Signals) -> None:
    """With a signal, of which the ranks hear in some way: they save, and leave nobody behind."""
    run, tree = by_submitit(pack, out)
    os.kill(run.pid, number)
    while number == signal.SIGKILL:  # the launcher holds no device any more, its ranks do
        held = leases.ranks_are_left(out.parent / "leases/0")
        if not rank_processes(tree):
            break
        assert held
    assert run.wait(600) == (75 if number == signal.SIGTERM else -signal.SIGKILL)
    assert psutil.wait_procs(tree, timeout=600)[1] == []


def preempt(pack: Path, out: Path) -> None:
    """Warn the tasks as submitit does before a time limit: their job goes on by itself."""
    run, tree = by_submitit(pack, out)
    tasks = [p for p in tree if "submitit.core._submit" in p.cmdline()]
    assert len(tasks) == 2
    so_far = len(printed(out))
    for task in tasks:
        task.send_signal(signal.SIGUSR2)
    assert run.wait(600) == 0, printed(out)
    text = printed(out)[so_far:]
    assert "stopped: saved at step" in text and "Requeued job" in text, text


def rank_processes(tree: list[psutil.Process]) -> list[psutil.Process]:
    """Those of a launcher's tree that train and have not ended."""
    found = []
    for process in tree:
        with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            if "pipeline.train" in process.cmdline():
                found.append(process)
    return found


def test_a_failure_of_the_step_is_the_launchers(pack: Path, tmp_path: Path) -> None:
    run = start(pack, tmp_path, "launch.launcher=submitit_local", folder="/dev/null/jobs")
    assert run.wait(600) == 2 and re.search(r"^error: .*launch.folder", printed(tmp_path), re.M)


@pytest.mark.slow
def test_a_second_signal_ends_all_at_once(tmp_path: Path) -> None:
    """As Ctrl-C twice does: no rank leaves a result, and none is waited for."""
    script = (
        "import signal, time; signal.signal(signal.SIGTERM, lambda *_: print('told', flush=True))"
    )
    (tmp_path / "stubborn.py").write_text(
        f"{script}\nprint('begun', flush=True)\ntime.sleep(100)\n"
    )
    command = [sys.executable, "-m", "pipeline.launch", "launch.launcher=submitit_local"]
    command += [f"launch.folder={tmp_path}/jobs", "--", "-m", "stubborn"]
    run = psutil.Popen(
        command,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{tmp_path}"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert run.stdout is not None
    for word in ("begun", "told"):
        while not (line := run.stdout.readline()).startswith(word):
            assert line
        killed = time.monotonic()
        run.send_signal(signal.SIGINT)
    output = run.stdout.read()
    assert run.wait(60) == 130 and "without a result" not in output
    assert time.monotonic() - killed < 10


def test_a_job_that_starts_again_forgets_its_last_result(tmp_path: Path) -> None:
    """A rank that saved has left the result 75, which the launcher must not take for the end."""
    task = {"JOB_ID": "7", "NTASKS": "1", "GLOBALID": "0", "LOCALID": "0"}
    environment = {f"SUBMITIT_LOCAL_{key}": value for key, value in task.items()}
    environment |= {"SUBMITIT_EXECUTOR": "local", "SUBMITIT_FOLDER": str(tmp_path)}
    stale = tmp_path / "7_0_result.pkl"
    stale.write_bytes(b"75")
    code = f"import pathlib, sys; sys.exit(3 + pathlib.Path({str(stale)!r}).exists())"
    words = (
        "import sys; from pipeline.launching.submit import Task; "
        f"sys.exit(Task(['-c', {code!r}], {{}})())"
    )
    run = [sys.executable, "-c", words]
    assert subprocess.run(run, cwd=ROOT, env=os.environ | environment).returncode == 3


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., SlurmJob[int]]:
    """Job 7 of two tasks; a stand-in for sacct tells one state a question, then the last."""

    def job(*states: str) -> SlurmJob[int]:
        said = tmp_path / "states"
        said.write_text("".join(f"{state}\n" for state in states))
        answer = "#!/bin/sh\necho 'JobID|State|NodeList'; echo \"7|$(head -1 SAID)|n1\"\n"
        answer += "[ $(wc -l < SAID) = 1 ] || sed -i 1d SAID\n"
        slurm.executable(tmp_path / "sacct", answer.replace("SAID", str(said)))
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        monkeypatch.setattr(SlurmJob, "watcher", submit.Watcher(delay_s=600))
        monkeypatch.setattr(submit, "CONFIRM", 0.01)
        return SlurmJob(tmp_path, "7", (0, 1))

    return job


@pytest.mark.parametrize(
    "states",
    [
        *(("SUSPENDED",), ("SIGNALING",), ("RESIZING",), ("REQUEUED",), ("RUNNING",)),
        *(("NODE_FAIL", "PENDING"), ("CANCELLED", "COMPLETING")),
    ],
)
def test_a_job_that_goes_on_is_not_over(
    states: tuple[str, ...], told: Callable[..., SlurmJob[int]]
) -> None:
    job = told(*states)
    for _ in range(3):
        assert not job.done(force_check=True)


@pytest.mark.parametrize("state", ["CANCELLED by 1000", "TIMEOUT", "COMPLETED", "NODE_FAIL"])
def test_a_job_whose_state_stays_a_last_one_is_over(
    state: str, told: Callable[..., SlurmJob[int]]
) -> None:
    job = told("RUNNING", state)
    assert not job.watcher.is_done("7", mode="force")
    time.sleep(0.01)  # a question within a millisecond is not asked
    assert job.watcher.is_done("7", mode="force")


def test_what_a_slurm_job_asks_for() -> None:
    launch = resolved(
        "launch.launcher=submitit_slurm", "launch.slurm.partition=gpu", "launch.slurm.memory_gb=64"
    ).launch
    assert submit.slurm_parameters(launch) == {
        "slurm_partition": "gpu",
        "mem_gb": 64,
        "slurm_signal_delay_s": 120,
    }
