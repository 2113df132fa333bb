"""The score sheet: what it says of samples, on the page of a run and where runs are compared."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.reporting import overview, pages, tables
from pipeline.reporting.records import CurveRow, Evaluation, SampleAbout
from pipeline.reporting.score_sheet import (
    BEFOREHAND,
    BY_TRIALS,
    comparison,
    score_sheet,
    sheet_of,
    sheet_rows,
)
from tests.report_inputs import CLASSES, curve_row, of_sampler, sample

EXTRACTOR = "inception-v3-compat"
TRAIN = {"images": 9, "config": {"model": {"class_conditional": True}, "train": {"lr": 1e-3}}}


def about(**more: Any) -> SampleAbout:
    """A description of samples, with keys of its configuration."""
    keys = {"classes": "balanced"} | more.pop("keys", {})
    return SampleAbout.parse(sample(0) | {"config": {"sample": keys}} | more, "sample.json")


def scored(seed: int, value: float = 5.0, **keys: Any) -> dict[str, Any]:
    """A metrics file of samples with these keys of `sample`."""
    result = of_sampler(seed, "heun", 9, value)
    result["sample"]["config"]["sample"] |= keys
    return result


def put(results: Path, experiment: str, *contents: dict[str, Any]) -> None:
    folder = results / experiment / "train_64-box" / "metrics"
    folder.mkdir(parents=True)
    for number, content in enumerate(contents):
        (folder / f"{number}.json").write_text(json.dumps(content))


# --- one sheet ----------------------------------------------------------------------------------


def test_samples_of_the_configuration_alone() -> None:
    sheet = sheet_of(about(train=TRAIN, weights_sha256="ab" * 32), EXTRACTOR)
    assert (sheet.labels, sheet.seed, sheet.num, sheet.nfe) == ("balanced", 0, 12, 36.0)
    assert (sheet.chosen, sheet.tries, sheet.weights) == (BEFOREHAND, 0, "ab" * 32)
    seen = (sheet.seen_by_training, sheet.seen_by_guidance, sheet.seen_by_choice)
    assert seen == (False, False, False)


@pytest.mark.parametrize(
    ("extractor", "saw"), [(EXTRACTOR, True), ("dinov2-vit-s-14", False), (None, None)]
)
def test_a_choice_by_the_features_that_score_has_seen_them(
    extractor: str | None, saw: bool | None
) -> None:
    selection = {"tries": 7, "metric": "Fréchet distance", "extractor": extractor}
    sheet = sheet_of(about(keys={"selected": True}, selection=selection), EXTRACTOR)
    assert (sheet.chosen, sheet.tries, sheet.seen_by_choice) == (BY_TRIALS, 7, saw)


def test_what_nobody_wrote_down_is_not_known() -> None:
    """Of a choice by an earlier version, imported weights, a guide, another start."""
    earlier = sheet_of(about(keys={"selected": True}), EXTRACTOR)
    assert (earlier.chosen, earlier.tries, earlier.seen_by_choice) == (BY_TRIALS, None, None)
    imported = {"images": 9, "config": {"model": {"class_conditional": True}}}
    start = {"start": {"file": "a", "sha256": "0", "weights": "b"}}
    with_dropout = {"config": {"imported": {"kind": "edm2"}, "train": {"label_dropout": 0.0}}}
    for train in (None, imported, with_dropout, TRAIN | start):
        assert sheet_of(about(train=train), EXTRACTOR).seen_by_training is None
    assert sheet_of(about(guide_sha256="c"), EXTRACTOR).seen_by_guidance is None
    bare = sheet_of(SampleAbout.parse(sample(0), "here"), EXTRACTOR)
    assert (bare.labels, bare.chosen, bare.tries, bare.seen_by_choice) == (None,) * 4


def test_networks_without_classes_have_no_labels() -> None:
    train = {"config": {"model": {"class_conditional": False}, "train": {}}}
    assert sheet_of(about(train=train), EXTRACTOR).labels == "without classes"


def test_a_stored_sheet_counts_and_an_older_file_has_one_too() -> None:
    content = scored(0, classes="random")
    assert score_sheet(Evaluation.parse(content, "here")).labels == "random"
    content["sheet"] = {"labels": "histogram", "num": 12}
    assert score_sheet(Evaluation.parse(content, "here")).labels == "histogram"


# --- the page of a run --------------------------------------------------------------------------


def test_the_report_has_a_row_for_each_sheet() -> None:
    contents = (scored(0), scored(1), scored(2, classes="random"))
    evaluations = [Evaluation.parse(content, "here") for content in contents]
    assert [(row.seeds, row.labels) for row in sheet_rows(evaluations)] == [
        ("0, 1", "balanced"),
        ("2", "random"),
    ]
    curve = [CurveRow.parse(curve_row(step), "here") for step in (1, 2)]
    html = "".join(pages.report_parts(curve, evaluations, CLASSES, {}))
    assert "<h2>Score sheet</h2>" in html and BEFOREHAND in html
    text = tables.summary("title", curve, evaluations)
    assert any("random" in line and "not known" in line for line in text.splitlines())


# --- all experiments ----------------------------------------------------------------------------


def test_rows_are_ranked_within_one_sheet(tmp_path: Path) -> None:
    """The best of all was drawn by other labels: it stands apart, and the page says why."""
    for number, value in enumerate((3.0, 5.0)):
        put(tmp_path, f"plain{number}", scored(0, value))
    put(tmp_path, "drawn", scored(0, 4.0, classes="random"))
    found = overview.write(tmp_path)
    rows = [(row.experiment, row.sheet) for row in found.rows if row.name == "fid"]
    assert rows == [("plain0", 1), ("plain1", 1), ("drawn", 2)]
    page = found.page.read_text()
    for number, labels in ((1, "balanced"), (2, "random")):
        (line,) = (line for line in found.sheets if line.startswith(f"Sheet {number}: "))
        assert f"labels {labels}, 1 seed of 12 samples, chosen {BEFOREHAND}" in line
        assert line in page and line.split(",")[0] in overview.text(found)


@pytest.mark.parametrize("other", [{"num": 13}, {"seen_by_choice": True}, {"tries": 4}])
def test_what_makes_scores_incomparable_makes_another_line(other: dict[str, Any]) -> None:
    sheet = sheet_of(about(train=TRAIN), EXTRACTOR)
    assert comparison([sheet.model_copy(update=other)]) != comparison([sheet])
    assert comparison([sheet, sheet]) != comparison([sheet])
    alike = sheet.model_copy(update={"seed": 5, "nfe": 9.0, "weights": "f", "average": "width 1"})
    assert comparison([alike]) == comparison([sheet])
