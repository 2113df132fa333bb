"""The tables of a report as plain text, and the columns of its tables."""

import math
import re
import textwrap
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from pipeline.base.progress import clock
from pipeline.base.text import number, shorten
from pipeline.reporting.records import CurveRow, Evaluation
from pipeline.reporting.score_rows import (
    best_pairs,
    frechet_rows,
    protocol_texts,
    seed_rows,
    seeds_title,
    table_rows,
)
from pipeline.reporting.score_sheet import LEGEND as SHEET_LEGEND
from pipeline.reporting.score_sheet import TEXT_COLUMNS as SHEET_COLUMNS
from pipeline.reporting.score_sheet import sheet_rows

# Width of plain text
WIDTH = 110  # columns of the plain text, at most
LONG_HASH = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{52}\b")  # a sha256

Cell = str | float | None  # None: empty

# Columns of the tables: attribute of a row -> heading.
COLUMNS = {
    "label": "metric", "sampler": "sampler", "seed": "seed", "value": "value", "std": "±",
    "better": "better", "num_images": "N", "floor": "floor", "at": "at n", "ceiling": "ceiling",
    "num_bracket": "n", "real": "real", "nfe_mean": "NFE", "images_per_s": "images/s",
    "seconds": "seconds", "protocol": "protocol",
}  # fmt: skip
HTML_ONLY = {"label", "nfe_mean", "images_per_s", "seconds"}
TEXT_COLUMNS = {"name": "metric"} | {k: v for k, v in COLUMNS.items() if k not in HTML_ONLY}
TEXT_COLUMNS |= {"better": ""}
SEED_COLUMNS = {
    "label": "metric", "sampler": "sampler", "nfe_mean": "NFE", "num_images": "N",
    "seeds": "seeds", "values": "value of each seed", "mean": "mean", "std": "±", "min": "min",
    "protocol": "protocol",
}  # fmt: skip
TEXT_SEED_COLUMNS = {"name": "metric"} | {k: v for k, v in SEED_COLUMNS.items() if k != "label"}
SAMPLE_COLUMNS = {
    "sampler": "sampler", "seed": "seed", "num": "N", "nfe_mean": "NFE", "nfe_max": "NFE max",
    "images_per_s": "images/s", "seconds": "seconds", "device": "device", "world_size": "ranks",
    "precision": "precision", "guidance": "guidance", "classes": "classes",
}  # fmt: skip
NAMES = {  # columns of words
    "name", "label", "sampler", "device", "precision", "class", "seeds", "values", "experiment",
    "data", "weights", "start", "classes", "predictor", "labels", "average", "chosen", "training",
    "selection",
}  # fmt: skip
ARROWS = {"lower": "↓", "higher": "↑"}
LEGEND = (
    "↓ lower is better, ↑ higher is better. N: samples in the value. Floor, at n, ceiling: other "
    "real images, the samples, and uniform noise, each against the same n real images. Real: the "
    "value of other real images, n against n. NFE: network evaluations an image. Seconds: wall "
    "time of sampling. Over seeds, ± is the standard deviation of their values."
)


def cells(rows: Sequence[object], columns: Mapping[str, str]) -> list[dict[str, Cell]]:
    """The attributes of the rows that a table shows."""
    return [{key: getattr(row, key) for key in columns} for row in rows]


# --- plain text ----------------------------------------------------------------------------------


def cell_text(key: str, value: Cell) -> str:
    """A table cell as people read it."""
    if isinstance(value, str):
        return ARROWS.get(value, value) if key == "better" else value
    return str(value) if key == "seed" else number(value)


def text_table(
    rows: Sequence[Mapping[str, Cell]],
    columns: Mapping[str, str],
    names: Collection[str] = NAMES,
    width: int = WIDTH,
) -> list[str]:
    """Aligned lines of at most `width` characters: the columns `names` left, numbers right.

    Columns without content are left out; the widest name is shortened if the line is too long.
    """
    # columns with content, as text
    shown = {k: v for k, v in columns.items() if any(row.get(k) is not None for row in rows)}
    cells = [list(shown.values()), *([cell_text(k, row.get(k)) for k in shown] for row in rows)]
    # widths, the widest name shortened until the line fits
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    words = [i for i, key in enumerate(shown) if key in names]
    while sum(widths) + 2 * len(widths) - 2 > width and any(widths[i] > 1 for i in words):
        widths[max(words, key=widths.__getitem__)] -= 1
    return [
        "  ".join(
            shorten(cell, size).ljust(size) if key in names else cell.rjust(size)
            for key, cell, size in zip(shown, line, widths, strict=True)
        ).rstrip()
        for line in cells
    ]


def numbered(protocols: Sequence[str], always: bool = False) -> list[str]:
    """`Protocol: …` of each different text, with its number if there are several, or always."""
    distinct = list(dict.fromkeys(protocols))
    if len(distinct) == 1 and not always:
        return [f"Protocol: {distinct[0]}"]
    return [f"Protocol {number}: {text}" for number, text in enumerate(distinct, 1)]


def remarks(evaluations: Sequence[Evaluation]) -> list[str]:
    """The best of several, starts of the trainings, notes, legend and protocols, each once."""
    notes = [f"Note: {note}" for evaluation in evaluations for note in evaluation.notes]
    trainings = [evaluation.sample.train for evaluation in evaluations]
    starts = [
        f"The training started from {train.start.weights}: {train.start.text}"
        for train in trainings
        if train and train.start
    ]
    lines = dict.fromkeys([*best_pairs(evaluations), *starts, *notes])
    return [*lines, LEGEND, *numbered(protocol_texts(evaluations))]


def training(curve: Sequence[CurveRow]) -> str:
    """One sentence about the training."""
    last, end = curve[-1], curve[-math.ceil(len(curve) / 20) :]
    cost = "" if last.gpu_hours is None else f", {number(last.gpu_hours)} device-hours"
    return (
        f"Training: {last.images:,} images in {last.step:,} steps, wall time "
        f"{clock(last.seconds)}{cost}, loss {np.mean([row.loss for row in end]):.4g} "
        "(mean over the last 5% of the curve)"
    )


def wrapped(line: str) -> list[str]:
    """`line` as lines of at most WIDTH columns, long hashes cut to 12 digits."""
    return textwrap.wrap(short_hashes(line), WIDTH, break_on_hyphens=False)


def short_hashes(line: str) -> str:
    """`line` with every sha256 cut to 12 digits."""
    return LONG_HASH.sub(r"\1", line)


def summary(
    title: str,
    curve: Sequence[CurveRow],
    evaluations: Sequence[Evaluation],
    notes: Sequence[str] = (),
) -> str:
    """The report as plain text of at most WIDTH columns, long hashes cut to 12 digits."""
    # Head of the page
    rows, samples = table_rows(evaluations), [evaluation.sample for evaluation in evaluations]
    lines = [title, *textwrap.wrap(training(curve), WIDTH), ""]
    # three tables
    if over := seed_rows(frechet_rows(rows)):
        lines += [
            seeds_title(over),
            *text_table(cells(over, TEXT_SEED_COLUMNS), TEXT_SEED_COLUMNS),
            "",
        ]
    lines += [*text_table(cells(rows, TEXT_COLUMNS), TEXT_COLUMNS), ""]
    lines += [*text_table(cells(samples, SAMPLE_COLUMNS), SAMPLE_COLUMNS), ""]
    sheets, columns = cells(sheet_rows(evaluations), SHEET_COLUMNS), SHEET_COLUMNS
    lines += [*text_table(sheets, columns), ""]
    # notes and protocols
    for line in [*notes, SHEET_LEGEND, *remarks(evaluations)]:
        lines += wrapped(line)
    return "\n".join(lines) + "\n"
