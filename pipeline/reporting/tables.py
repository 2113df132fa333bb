"""The tables of the report: rows of scores, over samplers and seeds, and as plain text."""

import math
import re
import textwrap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.base.progress import clock
from pipeline.base.text import number, shorten
from pipeline.config.samplers import family
from pipeline.reporting.records import Bracket, CurveRow, Evaluation, Score

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
    "precision": "precision", "guidance": "guidance",
}  # fmt: skip
NAMES = {  # columns of words
    "name", "label", "sampler", "device", "precision", "class", "seeds", "values", "experiment",
    "data", "weights",
}  # fmt: skip
ARROWS = {"lower": "↓", "higher": "↑"}
LEGEND = (
    "↓ lower is better, ↑ higher is better. N: samples in the value. Floor, at n, ceiling: other "
    "real images, the samples, and uniform noise, each against the same n real images. Real: the "
    "value of other real images. NFE: network evaluations an image. Seconds: wall time of "
    "sampling. Over seeds, ± is the standard deviation of their values."
)


# --- rows ----------------------------------------------------------------------------------------


def protocol_texts(evaluations: Sequence[Evaluation]) -> list[str]:
    """The protocol of each evaluation as one line of text."""
    return [evaluation.protocol.text for evaluation in evaluations]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One metric of one set of samples."""

    name: str
    label: str  # of the metric, for people
    value: float
    std: float | None
    better: str  # lower or higher
    num_images: int
    real: float | None  # the value of other real images
    bracket: Bracket | None
    sampler: str
    family: str  # of samplers that differ in their number of steps
    seed: int
    nfe_mean: float
    images_per_s: float | None
    seconds: float
    protocol: int | None  # its number below the table; None: there is only one

    @property
    def floor(self) -> float | None:
        """The distance of other real images."""
        return self.bracket.floor if self.bracket else None

    @property
    def at(self) -> float | None:
        """The distance of the samples at the bracket's number of images."""
        return self.bracket.value if self.bracket else None

    @property
    def ceiling(self) -> float | None:
        """The distance of uniform noise."""
        return self.bracket.ceiling if self.bracket else None

    @property
    def num_bracket(self) -> int | None:
        """Number of images on each side of the bracket."""
        return self.bracket.num_images if self.bracket else None


@dataclass(frozen=True, kw_only=True)
class SeedsRow(Row):
    """Rows that differ in their seed alone: everything else is as in the first of them."""

    seeds: str
    values: str  # of each seed
    mean: float
    min: float
    max: float


def table_rows(evaluations: Sequence[Evaluation]) -> list[Row]:
    """One row per metric and set of samples, grouped by metric."""
    rows = []
    distinct = list(dict.fromkeys(protocol_texts(evaluations)))
    for evaluation in evaluations:
        place = distinct.index(evaluation.protocol.text) + 1 if len(distinct) > 1 else None
        scores = evaluation.metrics + accuracy_scores(evaluation)
        rows += [score_row(score, evaluation, place) for score in scores]
    order = list(dict.fromkeys(row.name for row in rows))
    return sorted(rows, key=lambda row: order.index(row.name))


def score_row(score: Score, evaluation: Evaluation, protocol: int | None) -> Row:
    """The row of one metric; `protocol` is its number."""
    sample = evaluation.sample
    return Row(
        name=score.name,
        label=score.label,
        value=score.value,
        std=score.std,
        better=score.better,
        num_images=score.num_images,
        real=score.real,
        bracket=score.bracket,
        sampler=sample.sampler,
        family=family(sample.to_json()),
        seed=sample.seed,
        nfe_mean=sample.nfe_mean,
        images_per_s=sample.images_per_s,
        seconds=sample.seconds,
        protocol=protocol,
    )


def accuracy_scores(evaluation: Evaluation) -> list[Score]:
    """The class accuracy as a metric, if there is one; `real` is that of real images."""
    shares = evaluation.class_accuracy
    if not shares:
        return []
    return [
        Score(
            name="class_accuracy",
            label="Class accuracy",
            value=shares.overall,
            num_images=evaluation.sample.num,
            better="higher",
            real=shares.floor.overall,
        )
    ]


def frechet_rows(rows: Sequence[Row]) -> list[Row]:
    """The rows that are FID, or the Fréchet distance in other features."""
    return [row for row in rows if is_frechet(row)]


def is_frechet(row: Row) -> bool:
    """Whether the metric is a Fréchet distance, whatever the features."""
    return row.name.startswith(("fid", "frechet"))


def seed_rows(rows: Sequence[Row]) -> list[SeedsRow]:
    """FID over seeds: one row per sampler, from `frechet_rows`."""
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        key = (row.name, row.sampler, row.num_images, row.protocol)
        groups.setdefault(key, []).append(row)
    return [over_seeds(group) for group in groups.values()]


def seeds_title(rows: Sequence[Row]) -> str:
    """Heading of `seed_rows`: FID is the name in the features of its own network alone."""
    named = all(row.name == "fid" for row in rows)
    return f"{'FID' if named else 'Fréchet distance'} over seeds"


def over_seeds(group: Sequence[Row]) -> SeedsRow:
    """Mean, extremes and standard deviation of the values of rows that differ in their seed."""
    values = [row.value for row in group]
    merged = {
        "std": float(np.std(values, ddof=1)) if len(values) > 1 else None,
        "nfe_mean": float(np.mean([row.nfe_mean for row in group])),
    }
    return SeedsRow(
        **vars(group[0]) | merged,
        seeds=", ".join(str(row.seed) for row in group),
        values=", ".join(map(number, values)),
        mean=float(np.mean(values)),
        min=min(values),
        max=max(values),
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
    shown = {k: v for k, v in columns.items() if any(row.get(k) is not None for row in rows)}
    cells = [list(shown.values()), *([cell_text(k, row.get(k)) for k in shown] for row in rows)]
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
    """Notes, legend and protocols, each once."""
    notes = [f"Note: {note}" for evaluation in evaluations for note in evaluation.notes]
    return [*dict.fromkeys(notes), LEGEND, *numbered(protocol_texts(evaluations))]


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
    rows, samples = table_rows(evaluations), [evaluation.sample for evaluation in evaluations]
    lines = [title, *textwrap.wrap(training(curve), WIDTH), ""]
    if over := seed_rows(frechet_rows(rows)):
        lines += [
            seeds_title(over),
            *text_table(cells(over, TEXT_SEED_COLUMNS), TEXT_SEED_COLUMNS),
            "",
        ]
    lines += [*text_table(cells(rows, TEXT_COLUMNS), TEXT_COLUMNS), ""]
    lines += [*text_table(cells(samples, SAMPLE_COLUMNS), SAMPLE_COLUMNS), ""]
    for line in [*notes, *remarks(evaluations)]:
        lines += wrapped(line)
    return "\n".join(lines) + "\n"
