"""Locks on a file system that has none, such as Lustre without -o flock."""

import errno
import fcntl
import os
from pathlib import Path
from typing import Any

import pytest

from pipeline.base.errors import UserError
from pipeline.base.files import atomic_folder
from pipeline.base.locks import is_held, locked
from pipeline.workflow.hooks import hold_folder


@pytest.fixture
def lockless(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", refuse)


@pytest.mark.usefixtures("lockless")
def test_a_file_system_without_locks_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match="has no locks by flock"), locked(tmp_path):
        pass
    with pytest.raises(UserError, match="has no locks by flock"):
        is_held(tmp_path)
    with pytest.raises(SystemExit):
        hold_folder(tmp_path / "pipeline.lock")
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}/pipeline.lock cannot be locked")


def test_a_folder_of_a_killed_process_with_the_same_number(tmp_path: Path) -> None:
    """In containers numbers of processes come again."""
    left = tmp_path / f".export.{os.getpid()}.tmp"
    left.mkdir()
    (left / "half").write_text("written")
    with atomic_folder(tmp_path / "export") as folder:
        (folder / "whole").write_text("written")
    assert [path.name for path in (tmp_path / "export").iterdir()] == ["whole"]
