"""Commands of the pages, run as they are printed, on a pack and an experiment that take seconds."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.pages import commands, for_here
from tests.workflow.project import copy_code

pytestmark = pytest.mark.slow
BY_HAND = commands("one-machine", "## By hand")
PACK = "results/packs/shapes_tiny_8/box"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with the pack of the tiny experiment."""
    project = copy_code(tmp_path_factory.mktemp("pages") / "project")
    words = [sys.executable, "-m", "pipeline.downsample", "experiment=tiny", "runtime.workers=1"]
    subprocess.run(words, cwd=project, check=True, capture_output=True)
    return project


def environment(**more: str) -> dict[str, str]:
    """A shell's, in which the project's Python comes first."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return os.environ | {"PATH": path, "OMP_NUM_THREADS": "1", "VERBOSE": "1"} | more


@pytest.mark.parametrize(
    ("number", "devices"), [(0, "2,5,7"), (1, "2,5"), (2, "2,5"), (3, "2,5,7")]
)
def test_the_front_doors_take_the_devices_that_are_there(
    project: Path, number: int, devices: str
) -> None:
    """Eight declared devices, of which the shell names three where the line names none."""
    (project / ".venv").is_symlink() or (project / ".venv").symlink_to(sys.prefix)
    small = {
        "make train": "make -o .venv/installed train EXPERIMENT=tiny SET='{}'",
        "RES=64": "RES=8",
        "gpu=4": "gpu=4 --config experiment=tiny 'set={}' -- train",
    }
    settings = f"runtime.gpus.train=3 train.batch=24 train.images=24 train.seed={90 + number}"
    words = for_here(commands("one-machine")[number], small).replace("{}", settings)
    more = {} if "CUDA_VISIBLE_DEVICES" in words else {"CUDA_VISIBLE_DEVICES": "2,5,7"}
    more["PIPELINE_LEASE_DIR"] = str(project / "leases")
    done = subprocess.run(
        ["bash", "-c", words],
        cwd=project,
        env=environment(PIPELINE_GPU_IDS="0,1,2,3,4,5,6,7", **more),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"CUDA_VISIBLE_DEVICES={devices} " in done.stdout + done.stderr


@pytest.mark.parametrize("command", commands("memory-and-speed", "## Out of memory"))
def test_what_memory_a_run_takes_is_told_and_limited(project: Path, command: str) -> None:
    small = {"make ": "make -o .venv/installed EXPERIMENT=tiny ", "RES=64": "RES=8"}
    small |= {"micro_batch=32": "micro_batch=8", "SET='": "SET='train.images=64 "}
    (project / ".venv").is_symlink() or (project / ".venv").symlink_to(sys.prefix)
    done = subprocess.run(
        ["bash", "-c", for_here(command, small)],
        cwd=project,
        env=environment(),
        capture_output=True,
        text=True,
    )
    printed = done.stdout + done.stderr
    assert done.returncode == 0, printed
    assert ("images/s" if "plan" in command else "train: 64 images") in printed


@pytest.mark.parametrize("command", BY_HAND)
def test_a_step_starts_by_hand(project: Path, command: str) -> None:
    words = shlex.split(for_here(command, {"PACK": PACK}))
    done = subprocess.run(
        [*words, "train.images=64", f"train.seed={BY_HAND.index(command)}"],  # another each
        cwd=project,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "train: 64 images" in done.stdout
    assert ("pipeline.launching.torchrun" in done.stdout) == (
        "pipeline.launch" in command or "launcher" in command
    )


def test_anybodys_module_on_a_shared_machine(tmp_path: Path) -> None:
    """The module of the page is a stand-in that says what it got; the timed one sleeps less."""
    (tmp_path / "lcm").mkdir()
    # one write, which the other rank's does not divide
    stand_in = "import os, sys\nprint(f\"{sys.argv[1:]} {os.environ['RANK']}\")"
    (tmp_path / "lcm/train.py").write_text(stand_in)
    path = environment(
        PYTHONPATH=f"{ROOT}:{tmp_path}",
        PIPELINE_GPU_IDS="0,1",
        PIPELINE_LEASE_DIR=str(tmp_path / "leases"),
    )
    printed = ""
    for command in commands("shared-machine"):
        words = ["bash", "-c", for_here(command, {"sleep(20)": "sleep(0.1)"})]
        done = subprocess.run(words, cwd=tmp_path, env=path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        printed += done.stdout
    for rank in (0, 1):
        assert f"['launcher=standalone', '+pretrain=mse'] {rank}" in printed
    assert printed.count("CUDA_VISIBLE_DEVICES=0,1") == 2 and "1 loop, best of 1" in printed
