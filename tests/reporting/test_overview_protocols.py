"""The table over experiments ranks scores of one protocol."""

from pathlib import Path

from pipeline.reporting import overview
from tests.reporting.test_overview import put, result


def test_rows_of_a_sheet_are_ranked_within_their_protocol(tmp_path: Path) -> None:
    values = {"a": 3.0, "b": 2.0, "c": 1.0, "d": 4.0}
    for name, value in values.items():
        protocol = {"kid_subsets": 7} if name in "bd" else {}
        put(tmp_path, name, result(0, value=value, **protocol))
    rows = [row for row in overview.find(tmp_path).rows if row.name == "fid"]
    assert [(row.experiment, row.protocol, row.sheet) for row in rows] == [
        ("c", 1, 1),
        ("a", 1, 1),
        ("b", 2, 1),
        ("d", 2, 1),
    ]
