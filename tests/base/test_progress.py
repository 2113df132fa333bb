"""Progress lines."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.base.progress import Progress, Row, clock, read_rows, write_rows

NUMBERS = st.none() | st.floats(allow_nan=False, allow_infinity=False)
ROWS = st.lists(
    st.builds(lambda step, loss: {"step": step, "loss": loss}, st.integers(0, 10**9), NUMBERS),
    unique_by=lambda row: row["step"],
)


def progress(monkeypatch: pytest.MonkeyPatch, seconds: float, total: int | None) -> Progress:
    """A Progress that began `seconds` ago."""
    result = Progress("sample", total, 10)
    monkeypatch.setattr("time.monotonic", lambda: result.start_time + seconds)
    return result


def test_a_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    line = progress(monkeypatch, 2, 5000)
    assert not line.due()
    line.show(1000, "loss 0.1")
    assert capsys.readouterr().out == (
        "sample: 1,000 of 5,000 images  loss 0.1  500 images/s  0:08 left\n"
    )


def test_images_of_before_are_not_counted_as_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    line = progress(monkeypatch, 10, 3000)
    line.num_before = 1000
    assert line.due() and line.line(2000) == "2,000 of 3,000 images  100 images/s  0:10 left"
    assert line.line(1000) == "1,000 of 3,000 images  0 images/s  ? left"


def test_an_unknown_total(monkeypatch: pytest.MonkeyPatch) -> None:
    assert progress(monkeypatch, 2, None).line(1000) == "1,000 images  500 images/s"


def test_clock() -> None:
    assert [clock(s) for s in (0, 59.6, 3599, 3600)] == ["0:00", "1:00", "59:59", "1:00:00"]


@given(rows=ROWS, share=st.floats(0, 1))
def test_rows_come_back_in_their_order_up_to_a_cut(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Row], share: float
) -> None:
    path = tmp_path_factory.mktemp("rows") / "metrics.jsonl"
    write_rows(path, rows)
    in_order = sorted(rows, key=lambda row: row["step"] or 0)
    assert read_rows(path) == in_order
    whole = path.read_bytes()
    cut = whole[: int(share * len(whole))]
    path.write_bytes(cut)
    num = len(read_rows(path))
    assert read_rows(path) == in_order[:num]
    assert num in (cut.count(b"\n"), cut.count(b"\n") + 1)  # a row may lack its line's end alone


def test_a_file_without_rows(tmp_path: Path) -> None:
    assert read_rows(tmp_path / "metrics.jsonl") == []
