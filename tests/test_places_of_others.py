"""Places of other users: one sentence, and nothing of theirs is taken for damaged or made again."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from snakemake_interface_executor_plugins.settings import ExecMode

from pipeline import fetch
from pipeline.base import locks
from pipeline.base.errors import EXIT_USER_ERROR, UserError
from pipeline.base.npy import load_npy
from pipeline.images.checks import existing_pack
from pipeline.scoring.kinds import KINDS
from pipeline.workflow import doors, hooks
from pipeline.workflow.hooks import hold_folder
from tests.another_user import another_user
from tests.conftest import ROOT, resolved

STEP = """
import errno, os
from pipeline.base.errors import run_main
def step(words):
    raise OSError(errno.{name}, os.strerror(errno.{name}), {file})
run_main(step)
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder below the current one."""
    tmp_path.chmod(0o755)  # pytest's folders are private
    monkeypatch.chdir(tmp_path)
    Path("place").mkdir()
    return Path("place")


def test_a_lock_of_another_user_is_looked_at(place: Path) -> None:
    with (place / "lock").open("w") as file, another_user(place, private=False):
        assert not locks.is_held(place)
        fcntl.flock(file, fcntl.LOCK_EX)
        assert locks.is_held(place)


def test_a_lock_that_cannot_be_read_or_had_is_named(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "lock").touch()
    with another_user(place, private=True), pytest.raises(UserError, match="place/lock cannot be"):
        locks.is_held(place)
    with another_user(place, private=False), pytest.raises(SystemExit) as ended:
        hold_folder(place / "pipeline.lock")
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("error: place/pipeline.lock cannot be read or wri")


def test_a_cache_that_cannot_be_written_is_named(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(place))
    with another_user(place, private=False):
        with pytest.raises(UserError, match=r"-s-14 cannot be downloaded .*Permission"):
            fetch.fetch(KINDS["dinov2-vit-s-14"])


@pytest.mark.parametrize("name", ["EACCES", "EPERM", "EROFS"])
def test_a_place_that_no_check_has_looked_at_is_one_sentence(name: str) -> None:
    done = run(STEP.format(name=name, file="'/pack/manifest.json'"))
    assert done.returncode == EXIT_USER_ERROR
    assert done.stderr.startswith("error: /pack/manifest.json cannot be read or written by this ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(("name", "file"), [("EIO", "'/pack'"), ("EPERM", "None")])
def test_other_faults_of_the_system_keep_their_traceback(name: str, file: str) -> None:
    assert "Traceback" in run(STEP.format(name=name, file=file)).stderr


def run(script: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-c", script]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("name", ["manifest.json", "images.npy", "labels.npy"])
def test_a_private_pack_is_not_made_again(place: Path, name: str) -> None:
    for file in ("manifest.json", "images.npy", "labels.npy"):
        (place / file).write_text("")
    with another_user(place / name, private=True):
        with pytest.raises(UserError, match=f"{name} cannot be read by this user: ask the owner"):
            existing_pack(place, resolved("experiment=tiny"))


def test_a_private_array_is_not_to_be_deleted(place: Path) -> None:
    np.save(place / "images.npy", np.zeros(3))
    with another_user(place / "images.npy", private=True):
        with pytest.raises(UserError, match="cannot be read or written by this user"):
            load_npy(place / "images.npy")


def test_snakemake_is_not_started_where_it_cannot_write(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    workflow: Any = SimpleNamespace(config_settings=None, exec_mode=ExecMode.DEFAULT)
    with another_user(Path(), private=False):
        with pytest.raises(UserError, match=f"{place} cannot be written by this user, and Snakem"):
            doors.read_doors(workflow, "config.yaml")
    # Its own folder is there, but that of the results is another user's
    for name in (".snakemake", "results"):
        Path(name).mkdir()
    Path(".snakemake").chmod(0o777)
    workflow.dag = SimpleNamespace(needrun_jobs=list)
    monkeypatch.setattr(hooks, "_HELD", [])
    with another_user(Path("results"), private=False), pytest.raises(SystemExit) as ended:
        hooks.start(workflow, SimpleNamespace(trainings={}, remade={}))  # type: ignore[arg-type]
    assert ended.value.code == 2
    assert "place/results cannot be written by this user" in capsys.readouterr().err


def test_this_user_owns_the_files_again_after_each(place: Path) -> None:
    with another_user(place, private=True):
        assert not os.access(place, os.R_OK)
    assert os.access(place, os.W_OK)
