"""Processes, threads and devices of a step; signals; nobody left behind."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipeline import launch
from pipeline.base.errors import UserError
from pipeline.compute import execution, gpus
from pipeline.config.words import parse_overrides
from pipeline.launching import commands, handover
from pipeline.launching.launchers import LAUNCHERS
from pipeline.workflow import hooks
from tests.conftest import ROOT, resolved


def test_as_many_processes_as_gpus() -> None:
    assert LAUNCHERS["standalone"].num_ranks(4, "auto", ["0", "1", "2", "3"]) == 4
    assert LAUNCHERS["standalone"].num_ranks(2, "auto", ["0", "1", "2", "3"]) == 2
    assert LAUNCHERS["none"].num_ranks(4, "auto", ["0", "1", "2", "3"]) == 1


def test_fewer_devices_than_ranks_is_an_error() -> None:
    with pytest.raises(UserError, match=r"4 GPUs are asked for but 2 visible .* gpu=2"):
        LAUNCHERS["standalone"].num_ranks(4, "auto", ["0", "1"])


def test_no_device_falls_back_to_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "cpu_cores", lambda: 6)
    assert LAUNCHERS["standalone"].num_ranks(4, "auto", []) == 4
    assert LAUNCHERS["standalone"].num_ranks(8, "auto", []) == 4  # six cores: a power of two
    assert LAUNCHERS["standalone"].num_ranks(0, "auto", []) == 1
    assert LAUNCHERS["standalone"].num_ranks(3, "cpu", ["0"]) == 3
    with pytest.raises(UserError, match="no GPU is visible"):
        LAUNCHERS["standalone"].num_ranks(1, "cuda", [])


@pytest.mark.parametrize(
    ("variable", "expected"),
    [
        (None, ["0", "1", "2", "3"]),
        ("2,0", ["2", "0"]),
        ("", []),
        ("0, 1", ["0", "1"]),
        ("0,7,1", ["0"]),  # as CUDA: an id that does not exist ends the list
        ("-1", []),
        ("GPU-1234,MIG-5", ["GPU-1234", "MIG-5"]),
    ],
)
def test_visible_devices(
    monkeypatch: pytest.MonkeyPatch, variable: str | None, expected: list[str]
) -> None:
    monkeypatch.setattr(gpus, "device_count", lambda: 4)
    environment = {} if variable is None else {"CUDA_VISIBLE_DEVICES": variable}
    assert gpus.visible(environment) == expected


def training(*words: str) -> Any:
    """What check_devices asks of an experiment."""
    config = resolved(*words)
    return SimpleNamespace(config=config, trainings={"train": SimpleNamespace(config=config)})


def test_a_job_that_this_machine_cannot_run_stops_before_the_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rule = SimpleNamespace(name="train")
    jobs = [SimpleNamespace(rule=rule, resources={"gpu": 4})]
    monkeypatch.setattr(gpus, "visible", lambda: ["0", "1"])
    with pytest.raises(SystemExit):
        hooks.check_devices(jobs, training())
    assert "rule train: 4 GPUs are asked for but 2 visible" in capsys.readouterr().err
    monkeypatch.setattr(gpus, "visible", lambda: ["0", "1", "2", "3"])
    hooks.check_devices(jobs, training())
    with pytest.raises(SystemExit):
        hooks.check_devices(jobs, training("train.batch=2050"))
    assert "cannot be divided over 4 processes" in capsys.readouterr().err


def test_a_torch_that_cannot_use_the_gpus_is_named() -> None:
    if torch.cuda.device_count():
        pytest.skip("this torch can use the GPUs")
    with pytest.raises(UserError, match="GPUs 0,1 are visible but torch .* cannot use them"):
        launch.check_torch(["0", "1"], "auto")
    launch.check_torch([], "auto")
    launch.check_torch(["0"], "cpu")


NVML = """
class NVMLError(Exception): ...
nvmlInit = nvmlShutdown = lambda: None
nvmlDeviceGetCount = lambda: 2
nvmlDeviceGetHandleByIndex = nvmlDeviceGetUUID = lambda index: f"GPU-{index}"
"""


@pytest.mark.slow
@pytest.mark.parametrize("by_hand", [["-m", "pipeline.train"], ["-m", "pipeline.reference"]])
def test_a_torch_that_cannot_use_the_gpus_is_named_by_hand_too(
    by_hand: list[str], pack: Path, tmp_path: Path
) -> None:
    """A driver that has two GPUs, beside a torch that was built without CUDA."""
    if torch.version.cuda:
        pytest.skip("NOT TESTED: this torch is built with CUDA")
    (tmp_path / "pynvml.py").write_text(NVML)
    out = ["out=" + str(tmp_path / "out"), "evaluate.extractor=efficientnet-lite0"]
    keys = ["experiment=tiny", f"data.path={pack}", f"record={pack}/manifest.json", *out]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    command = [sys.executable, *by_hand, *keys]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 2, done
    said = "error: GPUs 0,1 are visible but torch .* cannot use them .*: install a build for this"
    assert re.match(said, done.stderr) and "Traceback" not in done.stderr


def test_without_a_compiler_compile_is_off_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    net = torch.nn.Linear(2, 2)
    monkeypatch.setenv("PATH", str(tmp_path))
    for setting in ("auto", True):
        assert execution.prepare(net, torch.device("cpu"), setting, True) is net
        assert capsys.readouterr().out.startswith("torch.compile is off: no C++ compiler")
    assert not execution.compiles(torch.device("cuda"), "auto", True)
    assert capsys.readouterr().out.startswith("torch.compile is off: no C compiler")
    assert execution.prepare(net, torch.device("cpu"), False, True) is net
    assert capsys.readouterr().out == ""


def threads(total: int, count: int, *words: str) -> dict[str, str]:
    """The variables of a job of `count` ranks on one machine."""
    return commands.environment(None, total, count, resolved(*words).launch)


def test_threads_that_wait_soon_sleep_unless_the_user_says_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    launch = resolved().launch
    assert commands.rank_environment(None, 2, 1, launch)["GOMP_SPINCOUNT"] == "3000"
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    assert commands.rank_environment(None, 2, 1, launch)["GOMP_SPINCOUNT"] == "7"


def test_threads_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "cpu_cores", lambda: 16)
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    assert threads(16, 4)["OMP_NUM_THREADS"] == "4"
    assert threads(64, 4)["OMP_NUM_THREADS"] == "4"
    monkeypatch.setenv("MKL_NUM_THREADS", "16")  # as Snakemake exports it
    assert threads(16, 4)["MKL_NUM_THREADS"] == "4"
    assert threads(2, 4)["OMP_NUM_THREADS"] == "1"
    assert threads(2, 4, "launch.threads=7")["OMP_NUM_THREADS"] == "7"


def test_a_lease_is_in_the_order_of_the_bus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")
    assert threads(2, 1)["CUDA_DEVICE_ORDER"] == "FASTEST_FIRST"
    leased = commands.environment(["2", "0"], 2, 2, resolved().launch)
    assert leased["CUDA_VISIBLE_DEVICES"] == "2,0" and leased["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    monkeypatch.delenv("CUDA_DEVICE_ORDER")
    assert threads(2, 1)["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


def test_torchrun_for_several_python_for_one() -> None:
    launch = resolved().launch
    assert commands.command(["-m", "x"], 1, launch) == [sys.executable, "-m", "x"]
    words = commands.command(["-m", "x"], 3, launch)
    assert words[-3:] == ["--nproc-per-node=3", "-m", "x"] and "--standalone" in words
    assert "--standalone" in commands.command(["-m", "x"], 1, launch, ours=False)


# --- several nodes ------------------------------------------------------------------------------


def test_nodes_meet_at_the_endpoint_by_addresses() -> None:
    node = resolved(
        "launch.launcher=torchrun", "launch.nnodes=2", "launch.rdzv_endpoint=192.0.2.1:29500"
    ).launch
    words = commands.command(["-m", "x"], 4, node)
    assert {"--nnodes=2", "--rdzv-backend=c10d", "--nproc-per-node=4"} <= set(words)
    assert "--rdzv-conf=is_host=0,join_timeout=120" in words and "--standalone" not in words
    mine = next(word for word in words if word.startswith("--local-addr="))
    assert mine.partition("=")[2] in commands.addresses()


def test_the_first_node_knows_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "addresses", lambda: {"127.0.0.1": "lo", "192.0.2.1": "ib0"})
    assert commands.local_address("192.0.2.1", 29500) == ("192.0.2.1", True)
    words = ("launch.launcher=torchrun", "launch.nnodes=2", "launch.rdzv_endpoint=192.0.2.1:29500")
    assert commands.network(resolved(*words).launch, {}) == {
        "GLOO_SOCKET_IFNAME": "ib0",
        "NCCL_SOCKET_IFNAME": "ib0",
    }
    assert commands.network(resolved().launch, {}) == {"GLOO_SOCKET_IFNAME": "lo"}
    assert commands.network(resolved().launch, {"GLOO_SOCKET_IFNAME": "eth7"}) == {}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("null", "needs launch.rdzv_endpoint=HOST:PORT"),
        ("no.such.host.invalid:1", "no address"),
        ("localhost:29500", "means (127.0.0.1|::1) here, where other nodes cannot meet"),
    ],
)
def test_nodes_that_cannot_meet_are_told_why(given: str, says: str) -> None:
    words = ("launch.launcher=torchrun", "launch.nnodes=2", f"launch.rdzv_endpoint={given}")
    with pytest.raises(UserError, match=says):
        commands.command(["-m", "x"], 1, resolved(*words).launch)


# --- who prints what ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rank", "local", "error", "printed"),
    [
        ("0", "0", "UserError", True),
        ("3", "3", "UserError", False),
        ("3", "3", "OneRankError", True),
        ("8", "0", "UserError", True),  # the first of a second machine, which may lack the pack
    ],
)
def test_who_prints_an_error(rank: str, local: str, error: str, printed: bool) -> None:
    code = f"""
from pipeline.base.errors import *
def step(argv):
    raise {error}("no")
run_main(step)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "RANK": rank, "LOCAL_RANK": local},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr == ("error: no\n" if printed else "")


def test_ctrl_c_before_the_ranks_is_no_traceback() -> None:
    code = "from pipeline.base.errors import *\ndef step(argv): raise KeyboardInterrupt\n"
    code += "run_main(step)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "")


def test_the_launcher_says_what_it_wants_to_start() -> None:
    command = [sys.executable, "-m", "pipeline.launch", "--gpus", "1", "--", "pipeline.train"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "-m MODULE" in done.stderr and "Traceback" not in done.stderr


def test_bad_words_end_before_any_rank(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pipeline.launch", "--gpus", "2", "--"]
    command += ["-m", "pipeline.train", "experiment=tiny", "train.lrr=1", f"data.path={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 2
    assert done.stderr.strip() == "error: unknown key train.lrr; did you mean train.lr?"


# --- another project's module -------------------------------------------------------------------

LCM = """
import json, os, sys
names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER")
print(json.dumps([sys.argv[1:], {name: os.environ[name] for name in names}]) + chr(10), end="")
"""
WORDS = (
    "launcher=standalone",
    "+pretrain=mse",
    "++trainer.output_dir=checkpoints/mse_lcm",
    "++trainer.experiment_name=training_mse_lcm",
    "+trainer.use_submitit=false",
)


@pytest.mark.slow
def test_anybodys_module_starts_as_by_its_own_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lcm").mkdir()
    (tmp_path / "lcm/__init__.py").touch()
    (tmp_path / "lcm/train.py").write_text(LCM)
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{tmp_path}")
    monkeypatch.setenv("PIPELINE_GPU_IDS", "4,5,6,7")
    monkeypatch.setenv("PIPELINE_LEASE_DIR", str(tmp_path / "leases"))
    command = [sys.executable, "-m", "pipeline.launch", "--gpus", "2", "--", "-m", "lcm.train"]
    done = subprocess.run([*command, *WORDS], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loud, started, *ranks = done.stdout.splitlines()
    assert loud.startswith("REHEARSAL: PIPELINE_GPU_IDS=4,5,6,7")
    assert "--standalone --nnodes=1 " in started and "--nproc-per-node=2 -m lcm.train" in started
    found = sorted((json.loads(line) for line in ranks), key=lambda pair: pair[1]["RANK"])
    for rank, (arguments, environment) in enumerate(found):
        assert arguments == list(WORDS)
        assert environment == {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": "2",
            "CUDA_VISIBLE_DEVICES": "4,5",
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        }


def test_anybodys_module_needs_its_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIPELINE_GPU_IDS", "0")
    command = [sys.executable, "-m", "pipeline.launch", "--gpus", "2", "--", "-m", "lcm.train"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "2 GPUs are asked for but 1 visible" in done.stderr and "--gpus 1" in done.stderr


# --- a step by hand -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "launched"),
    [
        ([], False),
        (["launcher=none"], False),
        (["launcher=standalone"], True),
        (["+trainer.use_submitit=true"], True),
        (["++trainer.use_submitit=false"], True),
    ],
)
def test_a_step_that_names_a_launcher_is_launched_by_it(
    monkeypatch: pytest.MonkeyPatch, words: list[str], launched: bool
) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda _, command: started.append(command))
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr(gpus, "default_processes", lambda: 4)
    argv = ["experiment=tiny", *words]
    handover.hand_over("pipeline.train", argv, ())
    assert bool(started) == launched
    if launched:
        assert started[0][1:5] == ["-m", "pipeline.launch", "--gpus", "2"]
        assert started[0][5:] == ["--", "-m", "pipeline.train", *argv]


@pytest.mark.parametrize(("nodes", "wanted"), [(1, 3), (2, 6)])
def test_a_step_by_hand_gets_the_gpus_of_all_its_nodes(
    monkeypatch: pytest.MonkeyPatch, nodes: int, wanted: int
) -> None:
    """In an allocation of several nodes the launcher divides them; three visible on each."""
    started: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda _, command: started.append(command))
    monkeypatch.setattr(gpus, "default_processes", lambda: 3)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", str(nodes))  # one: the job then stands alone
    argv = ["experiment=tiny", "launcher=torchrun", "launch.nnodes=2"]
    handover.hand_over("pipeline.train", [*argv, "runtime.gpus.train=8"], ())
    assert started[0][3:5] == ["--gpus", str(wanted)]


@pytest.mark.parametrize("variable", ["RANK", commands.LAUNCHED])
def test_what_a_launcher_has_started_starts_nothing_more(
    monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "0")
    monkeypatch.setattr(os, "execv", lambda *_: pytest.fail("launched again"))
    handover.hand_over("pipeline.train", ["launcher=standalone"], ())


def test_the_words_of_the_large_concept_model_mean_ours() -> None:
    words = ["launcher=standalone", "++trainer.output_dir=out/x", "+trainer.experiment_name=smoke"]
    assert parse_overrides([*words, "+trainer.use_submitit=true"]) == {
        "launch": {"launcher": "submitit_slurm"},
        "out": "out/x",
        "experiment": "smoke",
    }
