"""Commands of the pages, run as they are printed, on a pack and an experiment that take seconds."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.test_workflow import copy_code

pytestmark = pytest.mark.slow
PAGE = (ROOT / "docs" / "one-machine.md").read_text()
BY_HAND = re.search(r"## By hand.*?```sh\n(.*?)```", PAGE, re.S)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with the pack of the tiny experiment."""
    project = copy_code(tmp_path_factory.mktemp("pages") / "project")
    words = [sys.executable, "-m", "pipeline.downsample", "experiment=tiny"]
    subprocess.run(words, cwd=project, check=True, capture_output=True)
    return project


def commands() -> list[str]:
    """The lines of the page's block, without their comments."""
    assert BY_HAND
    return [line.partition("  #")[0].strip() for line in BY_HAND.group(1).splitlines()]


@pytest.mark.parametrize("command", commands())
def test_a_step_starts_by_hand(project: Path, command: str) -> None:
    words = shlex.split(command.replace("PACK", "results/packs/shapes_tiny_8/box"))
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        [*words, f"train.seed={commands().index(command)}"],  # another training each
        cwd=project,
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "train: 640 images" in done.stdout
    assert ("pipeline.torchrun" in done.stdout) == (
        "pipeline.launch" in command or "launcher" in command
    )
