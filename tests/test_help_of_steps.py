"""`--help` says what a step does, and does nothing."""

import runpy
import sys

import pytest

from pipeline.steps import STEPS

OTHERS = ("export", "import_weights", "launch", "plan", "status", "stop")


@pytest.mark.parametrize("name", [*STEPS, *OTHERS])
@pytest.mark.parametrize("word", ["-h", "--help"])
def test_help(
    name: str, word: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [name, word])
    monkeypatch.delitem(sys.modules, f"pipeline.{name}", raising=False)
    with pytest.raises(SystemExit) as end:
        runpy.run_module(f"pipeline.{name}", run_name="__main__", alter_sys=True)
    assert end.value.code == 0
    out, err = capsys.readouterr()
    assert f"pipeline.{name}" in out and not err
