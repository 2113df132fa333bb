"""Locks while other processes look at them, or remove their files, at the same moment."""

import fcntl
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import pytest

from pipeline.base import locks
from pipeline.base.errors import UserError
from pipeline.base.locks import is_held, locked, take_lock


def test_a_look_at_a_lock_does_not_refuse_a_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who looks holds it for a moment."""
    (tmp_path / "lock").touch()
    with (tmp_path / "lock").open() as looking:
        assert take_lock(looking, shared=True)
        assert not is_held(tmp_path)  # one who looks does not take another for the holder
        monkeypatch.setattr(locks.time, "sleep", lambda _: fcntl.flock(looking, fcntl.LOCK_UN))
        with locked(tmp_path):
            assert is_held(tmp_path)


def test_a_folder_that_is_removed_meanwhile_has_one_holder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the opening of its file and its lock, and made anew by another process."""
    folder, others = tmp_path / "run", ExitStack()

    def racing(file: IO[str]) -> bool:
        monkeypatch.setattr(locks, "take_lock", take_lock)
        shutil.rmtree(folder)
        others.enter_context(locked(folder))
        return take_lock(file)

    monkeypatch.setattr(locks, "take_lock", racing)
    with others:
        with pytest.raises(UserError, match="is in use by process"), locked(folder):
            pass
        assert is_held(folder)
    assert not is_held(folder)
