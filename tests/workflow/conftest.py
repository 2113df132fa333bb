"""Fixtures of the workflow's tests: one real run of the `tiny` experiment serves all of them."""

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.bench.photos import write_photos
from tests.workflow.project import Project, copy_code, rules


def run_tiny(folder: Path) -> None:
    """The project, real photographs and a whole run of the experiment, with what it printed."""
    write_photos(folder / "images", per_class=10, size=40)
    project = Project(copy_code(folder / "project"), folder / "images")
    done = project.snakemake()
    assert done.returncode == 0, done.stdout + done.stderr
    assert rules(done.stdout + done.stderr) == sorted(
        ["downsample", "extractor", "reference", "train", "sample", "evaluate", "report"]
    )
    (folder / "output.txt").write_text(done.stdout + done.stderr)


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `run_tiny`, by the first worker that asks. Nobody changes it."""
    shared = tmp_path_factory.getbasetemp()
    shared = shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared
    folder = shared / "tiny"
    with (shared / "tiny.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            run_tiny(folder)
    assert (folder / "output.txt").exists(), "it failed in the worker that came first"
    return folder


def copied_to(folder: Path, tiny_run: Path) -> Project:
    """A copy of the run and its images."""
    for name in ("project", "images"):
        shutil.copytree(tiny_run / name, folder / name, symlinks=True)
    return Project(folder / "project", folder / "images", (tiny_run / "output.txt").read_text())


@pytest.fixture(scope="session")
def finished(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The tiny experiment, run whole; tests on it only look (dry runs)."""
    return copied_to(tmp_path_factory.mktemp("finished"), tiny_run)


@pytest.fixture
def copied(tiny_run: Path, tmp_path: Path) -> Callable[[], Project]:
    """Makes a copy of the finished project and its images that a test may change."""
    return lambda: copied_to(tmp_path, tiny_run)


@pytest.fixture
def fresh(tmp_path: Path) -> Project:
    """The project in an empty folder, without images."""
    return Project(copy_code(tmp_path / "project"), None)
