"""The tables of the report: rows of scores, over samplers and seeds, and as plain text."""

import json
import math
import re
import textwrap
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.base.progress import clock
from pipeline.base.text import number, shorten
from pipeline.config.samplers import family
from pipeline.reporting.records import Entry

WIDTH = 110  # columns of the plain text, at most
LONG_HASH = re.compile(
    r"\b([0-9a-f]{12})[0-9a-f]{52}\b"
)  # a sha256; its first digits in plain text

# Columns of the tables: key of a row -> heading.
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


def protocol_texts(evaluations: Sequence[Entry]) -> list[str]:
    """The protocol of each evaluation as one line of text."""
    return [json.dumps(e["protocol"], sort_keys=True).replace('"', "")[1:-1] for e in evaluations]


def table_rows(evaluations: Sequence[Entry]) -> list[Entry]:
    """One row a metric and set of samples, keyed as COLUMNS, grouped by metric.

    `evaluations`: the checked contents of metrics files. `protocol` is its number below the table,
    None where there is only one.
    """
    rows, texts = [], protocol_texts(evaluations)
    distinct = list(dict.fromkeys(texts))
    for evaluation, text in zip(evaluations, texts, strict=True):
        sample = {"protocol": distinct.index(text) + 1 if len(distinct) > 1 else None}
        sample |= {"family": family(evaluation["sample"])} | evaluation["sample"]
        for metric in evaluation["metrics"] + accuracy_metric(evaluation):
            near = metric.get("bracket") or {}
            row = {"floor": near.get("floor"), "at": near.get("value")}
            row |= {"ceiling": near.get("ceiling"), "num_bracket": near.get("num_images")}
            rows.append(sample | row | metric)
    order = list(dict.fromkeys(row["name"] for row in rows))
    return sorted(rows, key=lambda row: order.index(row["name"]))


def accuracy_metric(evaluation: Entry) -> list[Entry]:
    """The class accuracy as a metric, where there is one; `real` is that of real images."""
    shares = evaluation.get("class_accuracy")
    if not shares:
        return []
    metric = {"name": "class_accuracy", "label": "Class accuracy", "better": "higher"}
    num, real = evaluation["sample"]["num"], shares["floor"]["overall"]
    return [metric | {"value": shares["overall"], "num_images": num, "real": real}]


def frechet_rows(rows: Sequence[Entry]) -> list[Entry]:
    """Those of `table_rows` that are FID, or the Fréchet distance in other features."""
    return [row for row in rows if row["name"].startswith(("fid", "frechet"))]


def seed_rows(rows: Sequence[Entry]) -> list[Entry]:
    """FID over seeds: one row a sampler, keyed as SEED_COLUMNS, from `frechet_rows`."""
    groups: dict[tuple[Any, ...], list[Entry]] = {}
    for row in rows:
        key = (row["name"], row["sampler"], row["num_images"], row["protocol"])
        groups.setdefault(key, []).append(row)
    return [group[0] | over_seeds(group) for group in groups.values()]


def seeds_title(rows: Sequence[Entry]) -> str:
    """Heading of `seed_rows`: FID is the name in the features of its own network alone."""
    named = all(row["name"] == "fid" for row in rows)
    return f"{'FID' if named else 'Fréchet distance'} over seeds"


def over_seeds(group: Sequence[Entry]) -> Entry:
    """Mean, extremes and standard deviation of the values of rows that differ in their seed."""
    values = [row["value"] for row in group]
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {
        "seeds": ", ".join(str(row["seed"]) for row in group),
        "values": ", ".join(map(number, values)),
        "mean": float(np.mean(values)),
        "min": min(values),
        "max": max(values),
        "std": spread,
        "nfe_mean": float(np.mean([row["nfe_mean"] for row in group])),
    }


# --- plain text ----------------------------------------------------------------------------------


def cell_text(key: str, value: Any) -> str:
    """A table cell as people read it."""
    if isinstance(value, str):
        return ARROWS.get(value, value) if key == "better" else value
    return str(value) if key == "seed" else number(value)


def text_table(
    rows: Sequence[Entry],
    columns: Mapping[str, str],
    names: Collection[str] = NAMES,
    width: int = WIDTH,
) -> list[str]:
    """Aligned lines of at most `width` characters: the columns `names` left, numbers right.

    Columns without content are left out; the widest name is shortened where the line is too long.
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
    """`Protocol: …` of each different text, with its number where there are several, or always."""
    distinct = list(dict.fromkeys(protocols))
    if len(distinct) == 1 and not always:
        return [f"Protocol: {distinct[0]}"]
    return [f"Protocol {number}: {text}" for number, text in enumerate(distinct, 1)]


def remarks(evaluations: Sequence[Entry]) -> list[str]:
    """Notes, legend and protocols, each once."""
    notes = [f"Note: {note}" for evaluation in evaluations for note in evaluation["notes"]]
    return [*dict.fromkeys(notes), LEGEND, *numbered(protocol_texts(evaluations))]


def training(curve: Sequence[Entry]) -> str:
    """One sentence about the training."""
    last, few = curve[-1], curve[-math.ceil(len(curve) / 20) :]
    cost = f", {number(last['gpu_hours'])} device-hours" if "gpu_hours" in last else ""
    return (
        f"Training: {last['images']:,} images in {last['step']:,} steps, wall time "
        f"{clock(last['seconds'])}{cost}, loss {np.mean([row['loss'] for row in few]):.4g} "
        "(mean over the last 5% of the curve)"
    )


def wrapped(line: str) -> list[str]:
    """`line` as lines of at most WIDTH columns, long hashes cut to 12 digits."""
    return textwrap.wrap(short_hashes(line), WIDTH, break_on_hyphens=False)


def short_hashes(line: str) -> str:
    """`line` with every sha256 cut to 12 digits."""
    return LONG_HASH.sub(r"\1", line)


def summary(
    title: str, curve: Sequence[Entry], evaluations: Sequence[Entry], notes: Sequence[str] = ()
) -> str:
    """The report as plain text of at most WIDTH columns, long hashes cut to 12 digits."""
    rows, samples = table_rows(evaluations), [e["sample"] for e in evaluations]
    lines = [title, *textwrap.wrap(training(curve), WIDTH), ""]
    if over := seed_rows(frechet_rows(rows)):
        lines += [seeds_title(over), *text_table(over, TEXT_SEED_COLUMNS), ""]
    lines += [*text_table(rows, TEXT_COLUMNS), ""]
    lines += [*text_table(samples, SAMPLE_COLUMNS), ""]
    for line in [*notes, *remarks(evaluations)]:
        lines += wrapped(line)
    return "\n".join(lines) + "\n"
