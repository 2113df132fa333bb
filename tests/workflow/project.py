"""A folder with the project in it, in which Snakemake runs."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.conftest import ROOT
from tests.workflow.forks import TORCH, forks

CODE = ("Snakefile", "Makefile", "config.yaml", "pipeline", "envs", "profiles")
# One thread: on machines of few cores a second one mostly waits for the first
SET = "data.source=train data.pack_dir=null launch.threads=1"
ENGINE = [sys.executable, "-m", "snakemake", "--cores", "2", "--resources", "gpu=1"]
SNAKEMAKE = ("snakemake.cli", "pydantic", "numpy", "PIL.Image", "safetensors", "jinja2", "yte")

RUN = Path("results/tiny/train_8-box")
FROM_TRAIN = ["evaluate", "report", "sample", "train"]
EVERYTHING = ["downsample", "evaluate", "reference", "report", "sample", "train"]


def copy_code(folder: Path) -> Path:
    """The project's own files in an empty folder; also compiled ones, which are valid there."""
    folder.mkdir(parents=True)
    half_written = shutil.ignore_patterns("*.pyc.*")
    for name in CODE:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=half_written)
        else:
            shutil.copy2(ROOT / name, folder / name)
    return folder


class Project:
    """A folder with the project in it, and an environment."""

    def __init__(self, folder: Path, images: Path | None, output: str = "") -> None:
        self.folder = folder
        self.output = output  # of its first run
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("IMAGENET")}
        self.environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        if images:
            self.environment["IMAGENET_DIR"] = str(images)

    def command(self, *flags: str, set: str = "") -> list[str]:
        words = f"{SET} {set}".strip()
        return [*ENGINE, "--config", "experiment=tiny", f"set={json.dumps([words])}", *flags]

    def snakemake(self, *flags: str, set: str = "") -> subprocess.CompletedProcess[str]:
        return self.run(self.command(*flags, set=set))

    def run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        """A command in this folder; Snakemake in a fork of a process that has imported it."""
        if command[:3] == ENGINE[:3]:
            return forks(*SNAKEMAKE).run(command[2:], self.folder, self.environment)
        return subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True
        )

    def plan(self, set: str = "") -> subprocess.CompletedProcess[str]:
        words = self.command(set=set)
        return self.plan_of(*words[words.index("--config") :])

    def plan_of(self, *words: str) -> subprocess.CompletedProcess[str]:
        """The plan, in a fork of a process that has torch."""
        return forks(*TORCH).run(["pipeline.plan", *words], self.folder, self.environment)

    def jobs(self, *flags: str, set: str = "") -> list[str]:
        """The rules that a dry run would run, sorted, without the target rule."""
        done = self.snakemake("--dry-run", *flags, set=set)
        assert done.returncode == 0, done.stderr
        return rules(done.stdout + done.stderr)


def rules(output: str) -> list[str]:
    return sorted(r for r in re.findall(r"^(?:local)?rule (\w+):$", output, re.M) if r != "all")


def assert_stopped(done: subprocess.CompletedProcess[str], sentence: str) -> None:
    """One sentence, no traceback, not zero."""
    output = done.stdout + done.stderr
    assert done.returncode != 0
    assert sentence in output, output
    assert "Traceback" not in output
    assert output.count(sentence) <= 2, output  # the log is shown once more below the job


def until(condition: Callable[[], object], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
