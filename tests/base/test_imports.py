"""Imports without the garbage collector."""

import gc
import importlib
import weakref
from pathlib import Path

import pytest

from pipeline.base.imports import importing


def test_nothing_is_collected_and_what_is_new_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a_new_module.py").write_text("things = [[] for _ in range(1000)]")
    monkeypatch.syspath_prepend(tmp_path)
    before = gc.get_freeze_count()
    with importing():
        assert not gc.isenabled()
        importlib.import_module("a_new_module")
    assert gc.isenabled() and gc.get_freeze_count() > before + 1000


class Cycle:
    """An object that only the collector can free."""

    def __init__(self) -> None:
        self.itself = self


def test_garbage_of_the_program_is_still_collected() -> None:
    """A step that is called again, in a process that has its modules, keeps nothing."""
    garbage = weakref.ref(Cycle())
    with importing():
        importlib.import_module("json")
    assert gc.isenabled()
    gc.collect()
    assert garbage() is None


def test_an_import_that_fails_leaves_the_collector_as_it_was() -> None:
    with pytest.raises(ModuleNotFoundError), importing():
        importlib.import_module("no_such_module")
    assert gc.isenabled()
    gc.disable()
    try:
        with importing():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
