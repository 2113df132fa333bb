"""A report on classes whose names are not UTF-8, as folders may be named."""

import json
from pathlib import Path

from pipeline import report
from tests.report_inputs import build


def test_a_class_whose_name_is_not_utf8(tmp_path: Path) -> None:
    words = build(tmp_path, seeds=(0,))
    file = next(Path(word.partition("=")[2]) for word in words if word.startswith("record="))
    record = json.loads(file.read_text().replace("n00000001_circle", r"caf\udce9"))
    file.write_text(json.dumps(record))
    report.main(words)
    assert r"caf\udce9" in (tmp_path / "out" / "table.html").read_text()
