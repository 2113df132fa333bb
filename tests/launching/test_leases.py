"""Jobs that run beside each other on one machine get devices of their own."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from itertools import combinations
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline.base.errors import UserError
from pipeline.base.locks import is_still
from pipeline.compute import gpus
from pipeline.launching import leases
from tests.conftest import ROOT

STAND_IN = """
import fcntl, json, os, pathlib, sys, time
out, seconds = pathlib.Path(sys.argv[1]), float(sys.argv[2])
ids = os.environ["CUDA_VISIBLE_DEVICES"]
if os.environ.get("LOCAL_RANK", "0") == "0":
    here = pathlib.Path(__file__).parent
    held = [(here / f"held{one}").open("w") for one in ids.split(",")]
    for file in held:  # however this process ends, then its locks end too
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            (here / "shared").write_text(ids)
    start = time.time()
    out.with_suffix(".new").write_text(json.dumps({"ids": ids, "start": start}))
    out.with_suffix(".new").rename(out.with_suffix(".started"))  # readers see it whole
    time.sleep(seconds)
    out.write_text(json.dumps({"ids": ids.split(","), "start": start, "end": time.time()}))
"""
HOLDER = """
import sys, time
from pipeline.launching.leases import lease
with lease(int(sys.argv[1])) as mine:
    print(*mine.ids, flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of leases of its own, four declared devices, and a module to launch."""
    monkeypatch.setenv("PIPELINE_LEASE_DIR", str(tmp_path / "leases"))
    monkeypatch.setenv("PIPELINE_GPU_IDS", "0,1,2,3")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{tmp_path}")
    for name in ("CUDA_VISIBLE_DEVICES", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    return tmp_path


def holder(count: int, **environment: str) -> "subprocess.Popen[str]":
    """A process that holds a lease until it gets a line; it prints the ids."""
    words = [sys.executable, "-c", HOLDER, str(count)]
    pipe = subprocess.PIPE
    return subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True, env=os.environ | environment)


def ids_of(process: "subprocess.Popen[str]") -> list[str]:
    """The ids that a holder prints once it has them."""
    assert process.stdout is not None
    while (line := process.stdout.readline()).startswith("waiting"):
        pass
    return line.split()


def release(process: "subprocess.Popen[str]") -> None:
    """Let a holder end."""
    process.communicate("\n", timeout=600)


def overlap(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two jobs ran at the same time."""
    return one["start"] < other["end"] and other["start"] < one["end"]


# --- locks --------------------------------------------------------------------------------------


def test_leases_beside_each_other_share_no_device(machine: Path) -> None:
    jobs = [holder(2), holder(1), holder(1)]
    ids = [ids_of(job) for job in jobs]
    assert sorted(one for job in ids for one in job) == ["0", "1", "2", "3"]
    assert [len(one) for one in ids] == [2, 1, 1]
    for job in jobs:
        release(job)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_lease_ends_with_its_holder(machine: Path, number: signal.Signals) -> None:
    first = holder(3)
    held = ids_of(first)
    second = holder(4)
    assert second.stdout is not None and second.stdout.readline().startswith("waiting for 3 more")
    os.kill(first.pid, number)
    assert ids_of(second) == ["0", "1", "2", "3"] and len(held) == 3
    release(second)
    first.communicate()


def test_ranks_that_outlive_their_launcher_keep_its_devices(machine: Path) -> None:
    with leases.lease(2) as mine:
        ranks = leases.held_by_rank(mine.rank_locks), leases.held_by_rank(mine.rank_locks)
    waits = holder(4)
    assert waits.stdout is not None
    assert waits.stdout.readline().startswith("waiting for 2 more GPUs: 0,1 are in use")
    for descriptor in (*ranks[0], ranks[1][0]):
        os.close(descriptor)
    other = holder(1)  # waits behind the large one, which does not have all yet
    time.sleep(0.5)
    assert waits.poll() is None and other.poll() is None
    os.close(ranks[1][1])
    assert len(ids_of(waits)) == 4
    release(waits)
    assert len(ids_of(other)) == 1
    release(other)


def test_a_large_job_is_not_starved_by_small_ones(machine: Path) -> None:
    first = holder(1)
    ids_of(first)
    large = holder(4)
    assert large.stdout is not None and large.stdout.readline().startswith("waiting")
    small = holder(1)  # comes later, so it waits though three devices were free
    time.sleep(0.5)
    release(first)
    assert len(ids_of(large)) == 4
    release(large)
    assert ids_of(small) == ["0"]
    release(small)


def test_jobs_with_other_devices_do_not_wait_for_each_other(machine: Path) -> None:
    first = holder(1, CUDA_VISIBLE_DEVICES="0,1")
    ids_of(first)
    waits = holder(2, CUDA_VISIBLE_DEVICES="0,1")
    assert waits.stdout is not None and waits.stdout.readline().startswith("waiting")
    other = holder(2, CUDA_VISIBLE_DEVICES="2,3")
    assert ids_of(other) == ["2", "3"]
    for job in (other, first):
        release(job)
    assert ids_of(waits) == ["0", "1"]
    release(waits)


@pytest.mark.parametrize("ids", ["2,5,7", "GPU-aa11,GPU-bb22,MIG-cc33"])
def test_ids_of_any_kind(machine: Path, ids: str) -> None:
    one, two = holder(1, PIPELINE_GPU_IDS=ids), holder(2, PIPELINE_GPU_IDS=ids)
    assert sorted(ids_of(one) + ids_of(two)) == ids.split(",")
    release(one)
    release(two)


def test_an_index_and_a_uuid_of_one_device_are_the_same_lock(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpus, "device_ids", lambda: ["GPU-1a-2b", "GPU-3c-4d"])
    names = gpus.lock_names(["0", "GPU-1a", "GPU-1a-2b", "1", "MIG-9/2"])
    assert len(set(names.values())) == 3 and names["0"] == names["GPU-1a"] == "GPU-1a-2b"
    assert "/" not in names["MIG-9/2"]
    monkeypatch.delenv("PIPELINE_GPU_IDS")
    with (
        pytest.raises(UserError, match="names a GPU twice"),
        leases.lease(1, {"CUDA_VISIBLE_DEVICES": "0,GPU-1a"}),
    ):
        pass


def test_more_than_there_are_is_refused_with_both_numbers(machine: Path) -> None:
    with pytest.raises(UserError, match="5 GPUs are asked for but 4 visible"), leases.lease(5):
        pass


def test_in_an_allocation_its_own_jobs_share_its_devices(machine: Path) -> None:
    step = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "CUDA_VISIBLE_DEVICES": "1,2"}
    other = step | {"SLURM_STEP_ID": "1"}  # its devices 1 and 2 are others
    with leases.lease(1, os.environ | step) as one, leases.lease(1, os.environ | step) as two:
        assert one.ids + two.ids == ["1", "2"]
        with leases.lease(2, os.environ | other) as three:
            assert three.ids == ["1", "2"]


def test_a_cleared_folder_makes_no_second_lease(machine: Path) -> None:
    """A file that is not under its name any more locks nothing."""
    folder = leases.shared_folder(machine / "leases")
    old = leases.open_shared(folder / "0")
    (folder / "0").unlink()
    with leases.locked(folder / "0") as new:
        assert new is not None and not is_still(folder / "0", old)
        with leases.locked(folder / "0") as second:
            assert second is None
    os.close(old)


def test_a_removed_folder_is_made_again(machine: Path) -> None:
    with leases.lease(1) as mine:
        shutil.rmtree(machine / "leases")
        for descriptor in leases.held_by_rank(mine.rank_locks):
            os.close(descriptor)
    with leases.lease(1) as again:
        assert again.ids == ["0"]


def test_declared_devices_are_refused_beside_real_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "device_count", lambda: 2)
    with pytest.raises(UserError, match="this one has 2: unset it"):
        gpus.visible({"PIPELINE_GPU_IDS": "0,1"})


@pytest.mark.parametrize("ids", ["0,0", "0,../1"])
def test_declared_ids_must_be_ids(ids: str) -> None:
    with pytest.raises(UserError, match="is not a list of different ids"):
        gpus.visible({"PIPELINE_GPU_IDS": ids})


def test_a_place_of_leases_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    place = tmp_path / "file"
    place.touch()
    environment = {"PIPELINE_LEASE_DIR": str(place), "PIPELINE_GPU_IDS": "0"}
    with pytest.raises(UserError, match="have it deleted"), leases.lease(1, environment):
        pass


def test_files_of_leases_are_for_every_user(tmp_path: Path) -> None:
    mask = os.umask(0o077)
    try:
        folder = leases.shared_folder(tmp_path / "leases")
        os.close(leases.open_shared(folder / "0"))
    finally:
        os.umask(mask)
    assert folder.stat().st_mode & 0o7777 == 0o1777
    assert (folder / "0").stat().st_mode & 0o777 == 0o444


# --- jobs ---------------------------------------------------------------------------------------

SNAKEFILE = """
rule all:
    input: expand("job{k}.json", k=range(4))
rule job:
    output: "job{k}.json"
    resources: gpu=lambda wildcards: 1 + int(wildcards.k) % 2
    shell:
        "python -m pipeline.launch --gpus {resources.gpu} -- -m stand_in {output} 3"
"""


def snakemake(folder: Path) -> "subprocess.Popen[str]":
    """Snakemake on SNAKEFILE in its own folder."""
    folder.mkdir()
    (folder / "Snakefile").write_text(textwrap.dedent(SNAKEFILE))
    words = [sys.executable, "-m", "snakemake", "--cores", "8", "--resources", "gpu=4"]
    words += ["--quiet", "--retries", "2"]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.Popen(
        words,
        cwd=folder,
        text=True,
        env=os.environ | {"PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


@pytest.mark.slow
def test_two_workflows_with_a_killed_job_never_share_a_device(machine: Path) -> None:
    runs = [snakemake(machine / name) for name in ("one", "two")]
    victim = machine / "one" / "job1.started"
    while not victim.exists():
        assert all(run.poll() in (None, 0) for run in runs)
        time.sleep(0.05)
    begun = list((machine / "one").glob("*.started"))
    assert any(not path.with_suffix(".json").exists() for path in begun)
    kill_launchers(machine / "one")
    for run in runs:
        assert run.wait(timeout=600) == 0, run.communicate()[0]
    jobs = [json.loads(path.read_text()) for path in machine.glob("*/job?.json")]
    assert not (machine / "shared").exists()
    assert len(jobs) == 8 and sorted(len(job["ids"]) for job in jobs) == [1] * 4 + [2] * 4
    for one, other in combinations(jobs, 2):
        assert not (overlap(one, other) and set(one["ids"]) & set(other["ids"]))
    assert any(overlap(one, other) for one, other in combinations(jobs, 2))


def kill_launchers(folder: Path) -> None:
    """SIGKILL the launchers that work in `folder`, whose jobs then end."""
    trees: list[psutil.Process] = []
    for process in psutil.process_iter(["cmdline", "cwd"]):
        if process.info["cwd"] == str(folder) and "pipeline.launch" in (
            process.info["cmdline"] or []
        ):
            trees += [process, *process.children(recursive=True)]
            process.kill()
    assert psutil.wait_procs(trees, timeout=600)[1] == []
