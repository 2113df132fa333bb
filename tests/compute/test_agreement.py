"""Ranks that were started with other keys, data or code stop before the first step."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline import train
from pipeline.base.code import code_sha256
from pipeline.compute.agreement import disagreement
from pipeline.config.stages import rank_keys
from pipeline.config.words import lookup
from pipeline.launching import commands
from tests.conftest import ROOT, resolved, write_pack
from tests.test_train import words


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def by_hand(port: int, rank: int, module: str, *arguments: str) -> subprocess.Popen:
    """One of two ranks, started as a person does it."""
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    return subprocess.Popen(
        [sys.executable, "-m", f"pipeline.{module}", *arguments],
        cwd=ROOT,
        env={**os.environ, **meeting, "RANK": str(rank)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def refusal(*ranks: subprocess.Popen) -> str:
    """What all ranks print, who leave with status 2; not that one waited for another."""
    printed = [rank.communicate(timeout=200)[0].splitlines(keepends=True) for rank in ranks]
    outputs = ["".join(x for x in lines if not x.startswith("waiting for")) for lines in printed]
    assert [rank.returncode for rank in ranks] == [2, 2], outputs
    assert outputs[0] == outputs[1] and "Traceback" not in outputs[0], outputs
    return outputs[0]


@pytest.mark.slow
def test_ranks_with_other_keys_stop(pack: Path, tmp_path: Path) -> None:
    port, given = free_port(), words(pack, tmp_path)
    first = by_hand(port, 0, "train", *given)
    other = by_hand(port, 1, "train", *given, "train.lr=5e-4", "train.seed=7")
    assert refusal(first, other) == (
        "error: rank 1 has train.lr=0.0005 but rank 0 has train.lr=0.0001 (and differs in "
        "train.seed): start all ranks with the same keys, data and code\n"
    )
    assert not list(tmp_path.glob("checkpoints/*/step-*"))


@pytest.mark.slow
def test_ranks_with_other_data_stop(pack: Path, tmp_path: Path) -> None:
    write_pack(tmp_path / "pack", num=40, size=8, classes=10, seed=1)
    port = free_port()
    first = by_hand(port, 0, "train", *words(pack, tmp_path / "out"))
    other = by_hand(port, 1, "train", *words(tmp_path / "pack", tmp_path / "out"))
    assert "error: rank 1 has data.sha256.images=" in refusal(first, other)


def test_the_first_rank_that_differs_is_named() -> None:
    same = {"step": "train", "train": {"lr": 0.1, "grid": []}, "code": "a" * 64}
    assert disagreement([same, same]) == ""
    assert disagreement([same, {"step": "train"}]) == ""  # does not name the others
    assert disagreement([{"x": float("nan")}, {"x": float("nan")}]) == ""
    assert "rank 2 has step=sample but rank 0 has step=train" in disagreement(
        [same, same, same | {"step": "sample"}, same | {"step": "evaluate"}]
    )
    said = disagreement([same, same | {"code": "b" * 64}])
    assert "rank 1 has code=bbbbbbbbbbbb… but rank 0 has code=aaaaaaaaaaaa…:" in said
    assert "train.grid=[1] but rank 0 has train.grid=[]" in disagreement(
        [same, {"train": {"grid": [1]}}]
    )


@pytest.mark.parametrize("stage", ["train", "sample", "evaluate", "reference"])
def test_keys_of_a_machine_may_differ(stage: str) -> None:
    config = resolved("experiment=tiny", "runtime.workers=3")
    assert rank_keys(config, stage) == rank_keys(resolved("experiment=tiny"), stage)
    other = resolved("experiment=tiny", "runtime.sample_batch=3", "data.recipe=adm")
    assert rank_keys(config, stage) != rank_keys(other, stage)
    assert lookup(rank_keys(other, stage), "runtime.sample_batch") == 3


def test_the_hash_of_the_code_is_cheap() -> None:
    code_sha256.cache_clear()
    start = time.process_time()
    digest = code_sha256()
    assert time.process_time() - start < 0.05
    assert code_sha256() is digest and len(digest) == 64


def test_a_job_has_its_name_from_its_identity(pack: Path, tmp_path: Path) -> None:
    config = resolved("experiment=tiny", f"data.path={pack}", "launch.nnodes=2")
    identity = train.preflight(config, {"out": str(tmp_path)}, 1)
    named = commands.identified(config.launch, "pipeline.train", identity).rdzv_id
    assert named is not None and named.startswith("train-")
    again = commands.identified(config.launch, "pipeline.train", identity)
    assert again.rdzv_id == named
    other = resolved("experiment=tiny", f"data.path={pack}", "launch.nnodes=2", "train.lr=5e-4")
    identity = train.preflight(other, {"out": str(tmp_path)}, 1)
    assert commands.identified(other.launch, "pipeline.train", identity).rdzv_id != named
    given = resolved("launch.nnodes=2", "launch.rdzv_id=mine").launch
    assert commands.identified(given, "pipeline.train", identity).rdzv_id == "mine"


def agent(port: int, name: str, is_host: bool, seconds: int) -> subprocess.Popen:
    """The agent of one of two machines, as the launcher starts it."""
    words = ["--nnodes=2", "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}"]
    words += [f"--rdzv-id={name}", f"--rdzv-conf=is_host={int(is_host)},join_timeout={seconds}"]
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline.launching.torchrun", *words, "-m", "this"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
def test_two_jobs_at_one_port_are_told(tmp_path: Path) -> None:
    port = free_port()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        second_job = agent(port, "b", is_host=True, seconds=5)
        output, _ = second_job.communicate(timeout=100)
        expected = f"error: the port of launch.rdzv_endpoint=127.0.0.1:{port} is taken"
        assert second_job.returncode == 2 and output.startswith(expected), output
        assert output.count("\n") == 1
    ends = [agent(port, "a", is_host=True, seconds=12), agent(port, "b", False, seconds=4)]
    for end, name in zip(ends, "ab", strict=True):
        output, _ = end.communicate(timeout=100)
        expected = f"error: too few nodes met at 127.0.0.1:{port} in time as {name}: "
        assert end.returncode == 2 and expected in output, output
        assert "Traceback" not in output


@pytest.mark.slow
def test_a_rank_waits_for_others_with_a_word_and_an_end(pack: Path, tmp_path: Path) -> None:
    alone = by_hand(free_port(), 0, "train", *words(pack, tmp_path), "launch.join_seconds=2")
    output, _ = alone.communicate(timeout=100)
    assert alone.returncode == 2, output
    assert "waiting for 1 more rank at 127.0.0.1:" in output
    assert "error: 1 of 2 ranks did not come to 127.0.0.1:" in output and "within 2 s" in output


@pytest.mark.slow
def test_a_second_job_at_the_port_of_ranks_by_hand_is_told(pack: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        second = by_hand(taken.getsockname()[1], 0, "train", *words(pack, tmp_path))
        output, _ = second.communicate(timeout=100)
    assert second.returncode == 2 and "where perhaps another job meets" in output, output


STEP_OF_FOUR = {
    "SLURM_JOB_ID": "77",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NUM_NODES": "1",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_STEP_NODELIST": "localhost",
}


@pytest.mark.slow
@pytest.mark.parametrize("launched", [False, True])
def test_the_shell_of_one_of_four_tasks(launched: bool, pack: Path, tmp_path: Path) -> None:
    """By hand the other three are waited for; a launcher's one process is one rank."""
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "scontrol").write_text("#!/bin/sh\necho localhost\n")
    (tools / "scontrol").chmod(0o755)
    keys = words(pack, tmp_path, "launch.join_seconds=2", "train.images=12")
    before = ["pipeline.launch", "--gpus", "0", "--threads", "1", "--", "-m"] if launched else []
    done = subprocess.run(
        [sys.executable, "-m", *before, "pipeline.train", *keys],
        cwd=ROOT,
        env={**os.environ, **STEP_OF_FOUR, "PATH": f"{tools}:{os.environ['PATH']}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=200,
    )
    assert done.returncode == (0 if launched else 2), done.stdout
    assert ("waiting for 3 more tasks of the step" in done.stdout) != launched
    assert "Traceback" not in done.stdout
