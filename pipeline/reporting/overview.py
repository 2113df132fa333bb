"""One table of the scores of all experiments, a row for each metric and sampler, over its seeds.

    python -m pipeline.reporting.overview

Reads results/<experiment>/<data>/metrics/*.json of images, writes results/experiments.html and
prints the table. Files that are damaged or of another program are named and left out.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from pipeline.base.errors import UserError, run_main
from pipeline.base.files import atomic_stream
from pipeline.config.paths import RESULTS
from pipeline.reporting import sentences
from pipeline.reporting.pages import html_table, page, paragraphs
from pipeline.reporting.records import Evaluation, TrainAbout
from pipeline.reporting.score_rows import (
    Row,
    SeedsRow,
    is_frechet,
    over_seeds,
    table_rows,
)
from pipeline.reporting.score_sheet import comparison, score_sheet
from pipeline.reporting.tables import cells, numbered, text_table, wrapped

# Columns of the page: attribute of a row -> heading.
COLUMNS = {
    "experiment": "experiment", "data": "data", "sampler": "sampler", "seeds": "seeds",
    "nfe_mean": "NFE", "num_images": "N", "label": "metric", "protocol": "protocol",
    "sheet": "sheet",
    "mean": "mean", "better": "better", "min": "min", "max": "max", "floor": "floor",
    "ceiling": "ceiling", "real": "real", "trained": "images trained", "gpu_hours": "GPU-hours",
    "weights": "weights", "start": "started from",
}  # fmt: skip
TEXT_COLUMNS = {
    "name": "metric", "data": "data", "experiment": "experiment", "sampler": "sampler",
    "seeds": "seeds", "nfe_mean": "NFE", "num_images": "N", "mean": "mean", "better": "",
    "min": "min", "protocol": "protocol", "sheet": "sheet",
}  # fmt: skip
LEGEND = (
    "Mean, min, max: over the seeds. ↓ lower is better, ↑ higher is better. N: samples in the "
    "value. NFE: network evaluations an image. Floor, ceiling: other real images and noise, at "
    "their own number of images (the table of each run has it). Real: the value of other real "
    "images. GPU-hours: hours times devices, of the training; processes on a CPU. Weights: the "
    "first digits of their sha256. Only values of one protocol and one data set can be compared, "
    "and rows are ranked within one sheet and protocol: another sheet is of other labels, other "
    "numbers of samples, or other choices."
)


NO_SCORES = "There are no scores yet."


class Overview(NamedTuple):
    """The scores below the results, protocols by number, files left out and why."""

    # The page
    page: Path
    # Its content
    rows: list["ExperimentRow"]
    protocols: list[str]
    sheets: list[str]  # by number
    left_out: list[str]


class Scored(NamedTuple):
    """A metrics file in the folder of its experiment and data."""

    # Where it lies
    experiment: str
    data: str
    # What it says
    evaluation: Evaluation


@dataclass(frozen=True, kw_only=True)
class ExperimentRow(SeedsRow):
    """A metric of a sampler of an experiment, over its seeds."""

    # The experiment
    experiment: str
    data: str
    # The training
    trained: int | None  # images
    gpu_hours: float | None
    weights: str  # first digits of their sha256
    start: str | None  # file of the first weights
    # The sheets of all seeds
    sheet_text: str
    sheet: int = 0  # its number below the table, from 1; 0: not numbered yet


def read(results: Path) -> tuple[list[Scored], list[str]]:
    """The metrics files below `results`, and why others are left out."""
    # Good and bad files
    entries, left_out = [], []
    for path in sorted(results.glob("*/*/metrics/*.json")):
        if path.name in ("config.json", sentences.FILE):
            continue
        try:
            entries.append(Scored(path.parts[-4], path.parts[-3], Evaluation.read(path)))
        except UserError as error:
            left_out.append(f"Left out: {error}")
        except (OSError, RecursionError) as error:
            left_out.append(f"Left out: {path} cannot be read ({type(error).__name__})")
    return entries, left_out


def experiment_rows(entries: list[Scored], protocols: list[str]) -> list[ExperimentRow]:
    """One row per metric of a sampler of an experiment: equal in all but the seed."""
    # Equal but for seeds
    groups: dict[tuple[object, ...], list[tuple[Scored, Row]]] = {}
    for entry in entries:
        protocol = protocols.index(entry.evaluation.protocol_text) + 1
        for row in table_rows([entry.evaluation]):
            row = replace(row, protocol=protocol)
            key = (row.name, row.sampler, row.num_images, protocol)
            place = (entry.data, entry.experiment, weights(entry))
            groups.setdefault((place, key), []).append((entry, row))

    # The best first, among those that can be ranked
    return numbered_sheets(sorted(map(experiment_row, groups.values()), key=rank))


def numbered_sheets(rows: list[ExperimentRow]) -> list[ExperimentRow]:
    """The rows with the numbers of their sheets; those of equal sheets together."""
    texts = list(dict.fromkeys(row.sheet_text for row in rows))
    rows = [replace(row, sheet=texts.index(row.sheet_text) + 1) for row in rows]
    return sorted(rows, key=rank)


def experiment_row(group: Sequence[tuple[Scored, Row]]) -> ExperimentRow:
    """One row of rows that differ in their seed."""
    # Cost of the training
    entry, rows = group[0][0], [row for _, row in group]
    train = entry.evaluation.sample.train or TrainAbout()
    return ExperimentRow(
        **vars(over_seeds(rows)),
        experiment=entry.experiment,
        data=entry.data,
        trained=train.images,
        gpu_hours=train.gpu_hours,
        weights=weights(entry),
        start=train.start.text if train.start else None,
        sheet_text=comparison(score_sheet(scored.evaluation) for scored, _ in group),
    )


def weights(entry: Scored) -> str:
    """The first digits of the sha256 of the weights; empty if it is not known."""
    return (entry.evaluation.sample.weights_sha256 or "")[:8]


def rank(row: ExperimentRow) -> tuple[object, ...]:
    """Sort key: data sets, Fréchet distances before others, sheets, protocols, the best first.

    Rows whose sheets have no numbers yet (0) come by their values alone, which number the sheets.
    """
    sign = -1 if row.better == "higher" else 1
    protocol = row.protocol if row.sheet else 0
    return row.data, not is_frechet(row), row.name, row.sheet, protocol, sign * row.mean


def find(results: Path) -> Overview:
    """All scores below `results`, the best of each data set and metric first."""
    entries, left_out = read(results)
    texts = list(dict.fromkeys(entry.evaluation.protocol_text for entry in entries))
    rows = experiment_rows(entries, texts)
    sheets = {row.sheet: f"Sheet {row.sheet}: {row.sheet_text}" for row in rows}
    named = [sheets[number] for number in sorted(sheets)]
    protocols = numbered(texts, always=True)
    return Overview(results / "experiments.html", rows, protocols, named, left_out)


def write(results: Path) -> Overview:
    """Write experiments.html into `results` and return its content."""
    scores = find(results)
    rows = cells(scores.rows, COLUMNS)
    table = html_table(rows, COLUMNS) if rows else paragraphs([NO_SCORES])
    below = paragraphs([LEGEND, *scores.protocols, *scores.sheets, *scores.left_out])
    with atomic_stream(scores.page) as stream:
        stream.write(
            page("Scores of all experiments", [table, below]).encode(errors="backslashreplace")
        )
    return scores


def text(scores: Overview) -> str:
    """The table as plain text."""
    rows = cells(scores.rows, TEXT_COLUMNS)
    lines = text_table(rows, TEXT_COLUMNS) if rows else [NO_SCORES]
    for line in [*scores.protocols, *scores.sheets, *scores.left_out]:
        lines += wrapped(line)
    return "\n".join([*lines, f"page: {scores.page}"]) + "\n"


def main(argv: list[str]) -> None:
    """Write the page and print the table; takes no arguments."""
    if argv:
        raise UserError(f"unknown word {argv[0]!r}: pipeline.reporting.overview takes none")
    encoding = sys.stdout.encoding or "ascii"
    print(text(write(RESULTS)).encode(encoding, "replace").decode(encoding), end="")


if __name__ == "__main__":
    run_main(main)
