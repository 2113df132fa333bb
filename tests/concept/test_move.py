"""The move of a pack of documents, ended after each of its steps: the next run does the rest."""

from pathlib import Path

import pytest

from pipeline.concept import spool

CONTENT = ("vectors.npy", "offsets.npy", spool.TEXTS, "manifest.json")


@pytest.mark.parametrize("num_moved", range(len(CONTENT)))
def test_no_file_is_lost(tmp_path: Path, num_moved: int, monkeypatch: pytest.MonkeyPatch) -> None:
    making = tmp_path / ".making"
    making.mkdir()
    for name in CONTENT:
        (making / name).write_text(f"new {name}")
        (tmp_path / name).write_text(f"old {name}")
    replace, moved = Path.replace, []

    def replace_or_die(path: Path, target: Path) -> Path:
        if len(moved) == num_moved:
            raise SystemExit("killed")
        moved.append(target)
        return replace(path, target)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(Path, "replace", replace_or_die)
        spool.move_into_place(making, tmp_path)
    spool.move_into_place(making, tmp_path)
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {n: f"new {n}" for n in CONTENT}
