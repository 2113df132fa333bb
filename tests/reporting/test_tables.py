"""Tables: the right numbers as plain text and as HTML that needs nothing else."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np

from pipeline.reporting import pages, score_rows, tables
from pipeline.reporting.records import CurveRow
from tests.report_inputs import CLASSES, SHA256, curve_row, evaluation, of_sampler, parsed

CURVE = [CurveRow.parse(curve_row(step), "curve") for step in range(1, 31)]
EVALUATIONS = parsed(evaluation(0), evaluation(1))


def test_summary_holds_the_numbers() -> None:
    lines = tables.summary("title", CURVE, EVALUATIONS).splitlines()
    rows = [line.split() for line in lines]
    assert ["fid", "heun-18", "0", "34.5", "↓", "12", "12.25", "54.5", "4,321", "9"] in rows
    assert ["fid", "heun-18", "1", "35.5", "↓", "12", "12.25", "55.5", "4,321", "9"] in rows
    assert ["recall", "heun-18", "1", "0.625", "0.0125", "↑", "9"] in rows
    assert ["class_accuracy", "heun-18", "0", "0.875", "↑", "12", "0.9375"] in rows
    assert ["heun-18", "1", "12", "36", "36", "77.5", "1.5", "CPU", "2", "fp32", "1"] in rows
    assert lines.index("FID over seeds") < lines.index(next(x for x in lines if x[:4] == "fid "))
    assert lines[1].startswith("Training: 960 images in 30 steps, wall time 0:03, loss 0.06782 ")
    assert lines.count("Note: few images") == 1
    short = SHA256[:12]  # one line, digits and all
    assert lines[-1] == f"Protocol: extractor: inception-v3-compat, reference: {{pack: {short}}}"
    assert max(map(len, lines)) <= tables.WIDTH


def test_the_first_weights_of_a_training_are_named_once() -> None:
    evaluations = [evaluation(0), evaluation(1)]
    start = {"file": "w.safetensors", "sha256": SHA256, "weights": "current weights after 5 images"}
    for one in evaluations:
        one["sample"] |= {"train": {"images": 64, "start": start}}
    said = f"The training started from {start['weights']}: w.safetensors {SHA256[:12]}"
    assert tables.summary("title", CURVE, parsed(*evaluations)).splitlines().count(said) == 1


def test_distances_over_seeds() -> None:
    runs = parsed(*(of_sampler(seed, "heun", 18, 4.0 + seed) for seed in (0, 1, 2)))
    rows = score_rows.table_rows([*runs, *parsed(of_sampler(0, "heun", 9, 7.0))])
    many, one = score_rows.seed_rows(score_rows.frechet_rows(rows))
    values = np.array([4.0, 5.0, 6.0])
    assert (many.mean, many.min, many.std) == (values.mean(), 4.0, values.std(ddof=1))
    assert (many.seeds, many.values) == ("0, 1, 2", "4, 5, 6")
    assert (one.sampler, one.mean, one.min, one.std) == ("heun-9", 7.0, 7.0, None)
    text = tables.summary("title", CURVE, runs)
    assert "FID over seeds" in text and "4, 5, 6" in text


def test_the_best_of_several_is_called_so() -> None:
    """The least of many is lower than the next of its kind: the mean stands beside it."""
    runs = [of_sampler(seed, "heun", 18, 4.0 + seed) for seed in (0, 1, 2)]
    text = tables.summary("title", CURVE, parsed(*runs, of_sampler(0, "heun", 9, 7.0)))
    said = (
        "4 is the best of 4 pairs of sampler and seed (heun-18, seed 0); the mean of that sampler"
    )
    assert f"{said} over 3 seeds is 5" in " ".join(text.split())
    assert "the best of" not in tables.summary("title", CURVE, parsed(runs[0]))


def test_the_choice_of_classes_belongs_to_the_protocol() -> None:
    runs = [of_sampler(seed, "heun", 18, 4.0) for seed in (0, 1, 2)]
    for one, classes in zip(runs, ("balanced", "histogram", [1, 5]), strict=True):
        one["sample"]["config"]["sample"]["classes"] = classes
    text = tables.summary("title", CURVE, parsed(*runs))
    for number, classes in enumerate(("balanced", "histogram", "1, 5"), 1):
        assert re.search(rf"Protocol {number}: .*sample.classes: {classes}\n", text)
    assert re.search(r"heun-18 +2 .* 1, 5\n", text)  # in the table of samples
    runs[0]["sample"]["train"] = {"config": {"model": {"class_conditional": False}}}
    assert parsed(runs[0])[0].sample.classes is None


def test_only_fid_is_called_fid() -> None:
    other = evaluation(0)
    other["metrics"][0]["name"] = "frechet_efflite0_96"
    assert "Fréchet distance over seeds" in tables.summary("title", CURVE, parsed(other))


def test_numbers_name_their_protocol_where_there_are_two() -> None:
    both = parsed(evaluation(0), evaluation(1) | {"protocol": {"extractor": "dinov2-vit-s-14"}})
    rows = score_rows.table_rows(both)
    assert [row.protocol for row in rows if row.name == "fid"] == [1, 2]
    lines = tables.summary("title", CURVE, both).splitlines()
    assert lines[-1] == "Protocol 2: extractor: dinov2-vit-s-14"
    assert next(line for line in lines if line.startswith("fid ")).endswith(" 1")
    alone = score_rows.table_rows(EVALUATIONS)
    assert {row.protocol for row in alone} == {None}


def test_accuracy_of_real_images_is_no_floor() -> None:
    rows = tables.cells(score_rows.table_rows(EVALUATIONS), tables.TEXT_COLUMNS)
    lines = tables.text_table(rows, tables.TEXT_COLUMNS)
    accuracy = next(line for line in lines if line.startswith("class_accuracy"))
    assert lines[0].endswith("real") and accuracy.endswith("0.9375")
    assert len(lines[0]) == len(accuracy)  # columns of numbers end flush


def test_long_names_are_shortened_to_fit() -> None:
    rows = [replace(row, sampler="s" * 200) for row in score_rows.table_rows(EVALUATIONS)]
    lines = tables.text_table(tables.cells(rows, tables.TEXT_COLUMNS), tables.TEXT_COLUMNS)
    assert max(map(len, lines)) == tables.WIDTH and "…  " in lines[1] and " 4,321 " in lines[1]


def test_notes_alone_make_a_summary() -> None:
    empty = evaluation(0) | {"metrics": [], "class_accuracy": None, "notes": ["left out: labels"]}
    text = tables.summary("title", CURVE, parsed(empty))
    assert "Note: left out: labels" in text and "class_accuracy" not in text
    page = pages.page("title", pages.report_parts(CURVE, parsed(empty), CLASSES, {}))
    assert "each class" not in page and "over seeds" not in page


class Cells(HTMLParser):
    """Collects table rows, tags that load something, and unclosed tags."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.open: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [f"{tag} {k}" for k, _ in attrs if k in ("src", "href", "action", "data")]
        if tag != "meta":
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and {"td", "th"} & set(self.open):
            self.rows[-1].append(data)


def test_page_is_whole_html_without_network() -> None:
    counts = {"real": [4, 4, 4], "heun-18, seed 0": [5, 3, 4]}
    parts = pages.report_parts(CURVE, EVALUATIONS, CLASSES, counts, ["left < out"])
    text = pages.page("a < b", parts)
    page = Cells()
    page.feed(text)
    page.close()
    assert not page.open and not page.loads
    assert "http" not in text and "url(" not in text and "@import" not in text
    first = ["FID <of all>", "heun-18", "0", "34.5", "↓", "12", "12.25", "54.5", "4,321", "9"]
    assert [*first, "36", "77.5", "1.5"] in page.rows
    assert [CLASSES[1], "0.5", "0.5"] in page.rows and [CLASSES[2]] in page.rows
    assert [CLASSES[0], "4", "5"] in page.rows and "left &lt; out" in text
    over = ["FID <of all>", "heun-18", "36", "12", "0, 1", "34.5, 35.5", "35", "0.7071", "34.5"]
    assert over in page.rows
    assert "inception-v3-compat" in text and SHA256 in text
