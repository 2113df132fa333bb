"""One table of the scores of all experiments, a row for each metric and sampler, over its seeds.

    python -m pipeline.reporting.overview

Reads results/<experiment>/<data>/metrics/*.json, writes results/experiments.html and prints the
table. Files that are damaged or of another program are named and left out.
"""

import sys
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.base.errors import UserError, run_main
from pipeline.base.files import atomic_stream
from pipeline.config.paths import RESULTS
from pipeline.reporting.pages import html_table, page, paragraphs
from pipeline.reporting.records import Entry, read_evaluation
from pipeline.reporting.tables import (
    frechet_rows,
    numbered,
    over_seeds,
    protocol_texts,
    table_rows,
    text_table,
    wrapped,
)

# Columns of the page: key of a row -> heading.
COLUMNS = {
    "experiment": "experiment", "data": "data", "sampler": "sampler", "seeds": "seeds",
    "nfe_mean": "NFE", "num_images": "N", "label": "metric", "protocol": "protocol",
    "mean": "mean", "better": "better", "min": "min", "max": "max", "floor": "floor",
    "ceiling": "ceiling", "real": "real", "trained": "images trained", "gpu_hours": "GPU-hours",
    "weights": "weights",
}  # fmt: skip
TEXT_COLUMNS = {
    "name": "metric", "data": "data", "experiment": "experiment", "sampler": "sampler",
    "seeds": "seeds", "nfe_mean": "NFE", "num_images": "N", "mean": "mean", "better": "",
    "min": "min", "protocol": "protocol",
}  # fmt: skip
LEGEND = (
    "Mean, min, max: over the seeds. ↓ lower is better, ↑ higher is better. N: samples in the "
    "value. NFE: network evaluations an image. Floor, ceiling: other real images and noise, at "
    "their own number of images (the table of each run has it). Real: the value of other real "
    "images. GPU-hours: hours times devices, of the training; processes on a CPU. Weights: the "
    "first digits of their sha256. Only values of one protocol and one data set can be compared."
)


class Found(NamedTuple):
    """What lies in the results: rows as in COLUMNS, protocols by number, files left out and why."""

    page: Path
    rows: list[Entry]
    protocols: list[str]
    left_out: list[str]


def read(results: Path) -> tuple[list[Entry], list[str]]:
    """The metrics files below `results`, with `experiment` and `data`, and why others are not."""
    entries, left_out = [], []
    for path in sorted(results.glob("*/*/metrics/*.json")):
        if path.name == "config.json":
            continue
        place = {"experiment": path.parts[-4], "data": path.parts[-3]}
        try:
            entries.append(read_evaluation(path) | place)
        except UserError as error:
            left_out.append(f"Left out: {error}")
        except (OSError, RecursionError) as error:
            left_out.append(f"Left out: {path} cannot be read ({type(error).__name__})")
    return entries, left_out


def numeric(value: Any) -> float | None:
    """`value` where it is a number, else None."""
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def facts(entry: Entry) -> Entry:
    """What a row says of the run beside its scores."""
    sample = entry["sample"]
    train = sample.get("train") if isinstance(sample.get("train"), dict) else {}
    return {
        "experiment": entry["experiment"],
        "data": entry["data"],
        "trained": numeric(train.get("images")),
        "gpu_hours": numeric(train.get("gpu_hours")),
        "weights": str(sample.get("weights_sha256") or "")[:8],
    }


def experiment_rows(entries: list[Entry]) -> list[Entry]:
    """One row a metric of a sampler of an experiment: equal in all but the seed."""
    texts = protocol_texts(entries)
    distinct = list(dict.fromkeys(texts))
    groups: dict[tuple[Any, ...], list[Entry]] = {}
    for entry, text in zip(entries, texts, strict=True):
        for row in table_rows([entry]):
            row |= facts(entry) | {"protocol": distinct.index(text) + 1}
            same = ("data", "name", "experiment", "sampler", "num_images", "weights", "protocol")
            groups.setdefault(tuple(row[key] for key in same), []).append(row)
    rows = [group[0] | over_seeds(group) for group in groups.values()]
    return sorted(rows, key=rank)


def rank(row: Entry) -> tuple[Any, ...]:
    """Sort key: data sets, Fréchet distances before other metrics, the best first."""
    sign = -1 if row["better"] == "higher" else 1
    return row["data"], not frechet_rows([row]), row["name"], sign * row["mean"]


def find(results: Path) -> Found:
    """All scores below `results`, the best of each data set and metric first."""
    entries, left_out = read(results)
    protocols = numbered(protocol_texts(entries), always=True)
    return Found(results / "experiments.html", experiment_rows(entries), protocols, left_out)


def write(results: Path) -> Found:
    """Write experiments.html into `results` and return what stands in it."""
    found = find(results)
    none = "There are no scores yet."
    table = html_table(found.rows, COLUMNS) if found.rows else paragraphs([none])
    below = paragraphs([LEGEND, *found.protocols, *found.left_out])
    with atomic_stream(found.page) as stream:
        stream.write(page("Scores of all experiments", [table, below]).encode())
    return found


def text(found: Found) -> str:
    """The table as plain text."""
    lines = text_table(found.rows, TEXT_COLUMNS) if found.rows else ["There are no scores yet."]
    for line in [*found.protocols, *found.left_out]:
        lines += wrapped(line)
    return "\n".join([*lines, f"page: {found.page}"]) + "\n"


def main(argv: list[str]) -> None:
    """Write the page and print the table; takes no arguments."""
    if argv:
        raise UserError(f"unknown word {argv[0]!r}: pipeline.reporting.overview takes none")
    encoding = sys.stdout.encoding or "ascii"
    print(text(write(RESULTS)).encode(encoding, "replace").decode(encoding), end="")


if __name__ == "__main__":
    run_main(main)
