"""The tables of the report: rows of metrics as plain text and as a page of HTML."""

import html
import json
import math
import re
import string
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.metering import clock
from pipeline.text import number, shorten

Entry = dict[str, Any]  # one object of the metrics file or the curve
WIDTH = 110  # columns of the plain text, at most
LONG_HASH = re.compile(
    r"\b([0-9a-f]{12})[0-9a-f]{52}\b"
)  # a sha256; its first digits in plain text

# Columns of the tables: key of a row -> heading.
COLUMNS = {
    "label": "metric", "sampler": "sampler", "seed": "seed", "value": "value", "std": "±",
    "better": "better", "num_images": "N", "floor": "floor", "at": "at n", "ceiling": "ceiling",
    "num_bracket": "n", "real": "real", "nfe_mean": "NFE", "images_per_s": "images/s",
    "seconds": "seconds",
}  # fmt: skip
HTML_ONLY = {"label", "nfe_mean", "images_per_s", "seconds"}
TEXT_COLUMNS = {"name": "metric"} | {k: v for k, v in COLUMNS.items() if k not in HTML_ONLY}
TEXT_COLUMNS |= {"better": ""}
SAMPLE_COLUMNS = {
    "sampler": "sampler", "seed": "seed", "num": "N", "nfe_mean": "NFE", "nfe_max": "NFE max",
    "images_per_s": "images/s", "seconds": "seconds", "device": "device", "world_size": "ranks",
    "precision": "precision", "guidance": "guidance",
}  # fmt: skip
NAMES = {"name", "label", "sampler", "device", "precision", "class"}  # columns of words
ARROWS = {"lower": "↓", "higher": "↑"}
LEGEND = (
    "↓ lower is better, ↑ higher is better. N: samples in the value. Floor, at n, ceiling: other "
    "real images, the samples, and uniform noise, each against the same n real images. Real: class "
    "accuracy of other real images. NFE: network evaluations an image. Seconds: wall time of "
    "sampling."
)


def table_rows(evaluations: Sequence[Entry]) -> list[Entry]:
    """One row a metric and set of samples, keyed as COLUMNS, grouped by metric.

    `evaluations`: the checked contents of metrics files.
    """
    rows = []
    for evaluation in evaluations:
        for metric in evaluation["metrics"] + accuracy_metric(evaluation):
            near = metric.get("bracket") or {}
            row = {"floor": near.get("floor"), "at": near.get("value")}
            row |= {"ceiling": near.get("ceiling"), "num_bracket": near.get("num_images")}
            rows.append(evaluation["sample"] | row | metric)
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


def cell_text(key: str, value: Any) -> str:
    """A table cell as people read it."""
    if isinstance(value, str):
        return ARROWS.get(value, value) if key == "better" else value
    return str(value) if key == "seed" else number(value)


def text_table(rows: Sequence[Entry], columns: Mapping[str, str]) -> list[str]:
    """Aligned lines of at most WIDTH characters: names left, numbers right.

    Columns without content are left out; the widest name is shortened where the line is too long.
    """
    shown = {k: v for k, v in columns.items() if any(row.get(k) is not None for row in rows)}
    cells = [list(shown.values()), *([cell_text(k, row.get(k)) for k in shown] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    while sum(widths) + 2 * len(widths) - 2 > WIDTH:
        widest = max((i for i, key in enumerate(shown) if key in NAMES), key=widths.__getitem__)
        widths[widest] -= 1
    return [
        "  ".join(
            shorten(cell, width).ljust(width) if key in NAMES else cell.rjust(width)
            for key, cell, width in zip(shown, line, widths, strict=True)
        ).rstrip()
        for line in cells
    ]


def remarks(evaluations: Sequence[Entry]) -> list[str]:
    """Notes, legend and protocols, each once."""
    notes = [f"Note: {note}" for evaluation in evaluations for note in evaluation["notes"]]
    texts = (json.dumps(e["protocol"], sort_keys=True).replace('"', "") for e in evaluations)
    return list(dict.fromkeys([*notes, LEGEND, *(f"Protocol: {text[1:-1]}" for text in texts)]))


def training(curve: Sequence[Entry]) -> str:
    """One sentence about the training."""
    last, few = curve[-1], curve[-math.ceil(len(curve) / 20) :]
    cost = f", {number(last['gpu_hours'])} device-hours" if "gpu_hours" in last else ""
    return (
        f"Training: {last['images']:,} images in {last['step']:,} steps, wall time "
        f"{clock(last['seconds'])}{cost}, loss {np.mean([row['loss'] for row in few]):.4g} "
        "(mean over the last 5% of the curve)"
    )


def summary(title: str, curve: Sequence[Entry], evaluations: Sequence[Entry]) -> str:
    """The report as plain text of at most WIDTH columns, long hashes cut to 12 digits."""
    rows, samples = table_rows(evaluations), [e["sample"] for e in evaluations]
    lines = [title, *textwrap.wrap(training(curve), WIDTH), ""]
    lines += [*text_table(rows, TEXT_COLUMNS), "", *text_table(samples, SAMPLE_COLUMNS), ""]
    for line in remarks(evaluations):
        lines += textwrap.wrap(LONG_HASH.sub(r"\1", line), WIDTH, break_on_hyphens=False)
    return "\n".join(lines) + "\n"


# --- page --------------------------------------------------------------------------------------

PAGE = string.Template("""<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><title>$title</title>
<style>
body { font: 13px/1.4 system-ui, sans-serif; margin: 2em; color: #222; background: #fff }
table { border-collapse: collapse; margin: 1em 0 }
th, td { padding: .3em .6em; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap }
th { border-bottom: 2px solid #1f4e79 }
.name { text-align: left }
td:first-child { white-space: normal; min-width: 15em }
button { all: unset; cursor: pointer; font-weight: bold }
button:focus-visible { outline: 2px solid #1f4e79 }
[aria-sort=ascending] button::after { content: " ▲" }
[aria-sort=descending] button::after { content: " ▼" }
tbody tr:hover { background: #eef3f8 }
p { max-width: 60em; overflow-wrap: anywhere }
</style></head>
<body>
<h1>$title</h1>
<p>$training</p>
$table
$text
$classes
<script>
for (const button of document.querySelectorAll("th button")) button.onclick = () => {
  const head = button.parentNode, body = head.closest("table").tBodies[0];
  const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
  const key = row => row.cells[head.cellIndex].dataset.sort;
  const order = (a, b) => a === "" ? 1 : b === "" ? -1
    : sign * (isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b);
  body.append(...[...body.rows].sort((a, b) => order(key(a), key(b))));
  for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
};
</script>
</body>
</html>
""")


def html_table(rows: Sequence[Entry], columns: Mapping[str, str]) -> str:
    """A table whose headings sort it; `columns`: key of a row -> heading."""
    buttons = {key: f"<button>{html.escape(name)}</button>" for key, name in columns.items()}
    heads = (html_cell("th", key, button) for key, button in buttons.items())
    lines = []
    for row in rows:
        inner = {key: html.escape(cell_text(key, row.get(key))) for key in columns}
        exact = {key: "" if row.get(key) is None else row[key] for key in columns}
        lines.append("".join(html_cell("td", key, inner[key], exact[key]) for key in columns))
    body = "\n".join(f"<tr>{line}</tr>" for line in lines)
    return f"<table><thead><tr>{''.join(heads)}</tr></thead>\n<tbody>\n{body}\n</tbody></table>"


def html_cell(tag: str, key: str, inner: str, exact: object = "") -> str:
    """One cell with the HTML `inner`; it sorts by `exact`."""
    side = ' class="name"' if key in NAMES else ""
    return f'<{tag}{side} data-sort="{html.escape(str(exact))}">{inner}</{tag}>'


def class_table(evaluations: Sequence[Entry], classes: Sequence[str]) -> str:
    """The accuracy of each class by each set of samples, folded; empty where none is known."""
    shares = {
        f"{e['sample']['sampler']}, seed {e['sample']['seed']}": e["class_accuracy"]["per_class"]
        for e in evaluations
        if e.get("class_accuracy")
    }
    rows = [
        {"class": name} | {title: values[label] for title, values in shares.items()}
        for label, name in enumerate(classes)
    ]
    table = html_table(rows, {key: key for key in ("class", *shares)})
    folded = f"<details><summary>Accuracy of each class</summary>\n{table}\n</details>"
    return folded if shares else ""


def page(
    title: str, curve: Sequence[Entry], evaluations: Sequence[Entry], classes: Sequence[str]
) -> str:
    """The tables as one HTML file that needs nothing else; `classes`: names in label order."""
    return PAGE.substitute(
        title=html.escape(title),
        training=html.escape(training(curve)),
        table=html_table(table_rows(evaluations), COLUMNS),
        text="\n".join(f"<p>{html.escape(line)}</p>" for line in remarks(evaluations)),
        classes=class_table(evaluations, classes),
    )
