"""Records of samples and scores: typed, and on disk as they always were."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.base.errors import UserError
from pipeline.base.files import write_json
from pipeline.base.json_objects import JsonObject
from pipeline.reporting.records import (
    Evaluation,
    ImagesEvaluation,
    Protocol,
    SampleAbout,
    read_curve,
)
from tests.report_inputs import SHA256, curve_row, evaluation, sample

NEIGHBOURS = {"searched": 9, "total": 12, "samples": [0, 4], "rows": [[1], [2]]}
NEIGHBOURS |= {"distances": [[0.5], [1.5]], "real": 2.5, "real_searched": 4}
DATA = {"source": "train", "resolution": 64, "recipe": "box", "classes": ["a"], "sha256": None}
TRAIN = {"images": 64, "gpu_hours": 0.5, "config": {"seed": 0}, "torch": "2.9.0"}
SAMPLE = sample(0) | {"data": DATA, "train": TRAIN, "config": {"sample": {"num": 12}}}
SAMPLE |= {"weights_sha256": SHA256, "guide_sha256": None}
PROTOCOL = {"extractor": "x", "reference": {"recipe": "box", "flipped": None}, "of_later": [1]}


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        (SampleAbout, SAMPLE),
        (SampleAbout, sample(0)),
        (Evaluation, evaluation(0)),
        (Evaluation, evaluation(0) | {"sample": SAMPLE, "neighbours": NEIGHBOURS}),
        (Evaluation, evaluation(0) | {"class_accuracy": None, "neighbours": None}),
        (ImagesEvaluation, evaluation(0) | {"sample": {"images": "a.npz", "num": 7}}),
        (Protocol, PROTOCOL),
    ],
)
def test_a_file_that_is_read_and_written_keeps_its_bytes(
    kind: type[JsonObject], content: dict[str, Any], tmp_path: Path
) -> None:
    write_json(tmp_path / "old.json", content)
    kind.read(tmp_path / "old.json").write(tmp_path / "new.json")
    assert (tmp_path / "new.json").read_bytes() == (tmp_path / "old.json").read_bytes()


def test_protocols_with_equal_keys_have_equal_text() -> None:
    turned = dict(reversed(PROTOCOL.items()))
    text = "extractor: x, of_later: [1], reference: {flipped: null, recipe: box}"
    assert Protocol.parse(PROTOCOL, "a").text == Protocol.parse(turned, "b").text == text


def test_rows_of_a_curve_may_have_more_columns(tmp_path: Path) -> None:
    path = tmp_path / "curve.jsonl"
    path.write_text(json.dumps(curve_row(1) | {"mfu": None, "gpu_hours": 0.5}) + "\n")
    (row,) = read_curve(path)
    assert (row.step, row.images, row.gpu_hours) == (1, 32, 0.5)


def test_samples_of_another_program_are_not_an_evaluation_of_ours() -> None:
    with pytest.raises(UserError, match=r"theirs is not .* \(sample.sampler: field required\)"):
        Evaluation.parse(evaluation(0) | {"sample": {"images": "a.npz"}}, "theirs")
