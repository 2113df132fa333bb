"""The report of one run: training curve, samples beside real images, table of metrics.

    python -m pipeline.report curve=CURVE.jsonl record=RECORD.json samples=FOLDER[,FOLDER...] \
        metrics=FILE.json[,FILE.json...] out=FOLDER [config=...]

Reads what the earlier steps wrote, and the pack that the record names. Everything is read, checked
and drawn before the first file is written. Ends by printing the table.
"""

import html
import io
import json
import math
import string
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline.config import load_step
from pipeline.errors import UserError, run_main
from pipeline.files import atomic_stream, load_npy, read_json
from pipeline.grid import Panel, curve_chart, distance_chart, number, panel_grid, shorten
from pipeline.keys import Config
from pipeline.layout import pack_folder
from pipeline.metering import clock

WORDS = ("curve", "record", "samples", "metrics", "out")
WIDTH = 110  # columns of the plain-text table, at most
Entry = dict[str, Any]

# What must stand in the files, and its type; float also takes whole numbers.
KEYS: dict[str, dict[str, type]] = {
    "curve": dict.fromkeys(("loss", "grad_norm", "images_per_s", "seconds"), float)
    | {"step": int, "images": int},
    "record": {"source": str, "resolution": int, "recipe": str, "num_images": int, "classes": list},
    "sample": {"sampler": str, "seed": int, "num": int, "nfe_mean": float, "seconds": float}
    | {"device": str, "world_size": int, "precision": str, "guidance": float},
    "evaluation": {"metrics": list, "notes": list, "protocol": dict, "sample": dict},
    "metric": {"name": str, "label": str, "value": float, "num_images": int, "better": str},
    "accuracy": {"overall": float, "per_class": list, "floor": dict},
    "bracket": {"num_images": int, "floor": float, "value": float, "ceiling": float},
}

# Columns of the tables: key of a row -> heading.
COLUMNS = {
    "label": "metric", "sampler": "sampler", "seed": "seed", "value": "value", "std": "±",
    "better": "better", "num_images": "N", "floor": "floor", "at": "at n", "ceiling": "ceiling",
    "num_bracket": "n", "nfe_mean": "NFE", "images_per_s": "images/s", "seconds": "seconds",
}  # fmt: skip
TEXT_COLUMNS = {"name": "metric", **dict(list(COLUMNS.items())[1:11]), "better": ""}
SAMPLE_COLUMNS = {
    "sampler": "sampler", "seed": "seed", "num": "N", "nfe_mean": "NFE", "nfe_max": "NFE max",
    "images_per_s": "images/s", "seconds": "seconds", "device": "device", "world_size": "ranks",
    "precision": "precision", "guidance": "guidance",
}  # fmt: skip
NAMES = {"name", "label", "sampler", "device", "precision", "class"}  # columns of words
ARROWS = {"lower": "↓", "higher": "↑"}
LEGEND = (
    "↓ lower is better, ↑ higher is better. N: samples in the value. Floor, at n, ceiling: other "
    "real images, the samples, and uniform noise, each against the same n real images; for class "
    "accuracy, floor is that of real images. NFE: network evaluations an image. Seconds: wall "
    "time of sampling."
)


# --- reading -----------------------------------------------------------------------------------


class Inputs(NamedTuple):
    """All that the report shows. The first panel holds the real images."""

    record: Entry
    curve: list[Entry]
    evaluations: list[Entry]
    panels: list[Panel]


def checked(kind: str, value: Any, where: object) -> Entry:
    """`value`, a mapping with the KEYS of its kind; raises UserError naming the first at fault."""
    entries = value if isinstance(value, dict) else {}
    for key, wanted in KEYS[kind].items():
        if not isinstance(entries.get(key), (int, float) if wanted is float else wanted):
            raise UserError(f"{where} has no valid {key!r}: run the step that makes it again")
    return entries


def read_curve(path: Path) -> list[Entry]:
    """The rows of a training curve; raises UserError where it is missing, damaged or empty."""
    if not path.is_file():
        raise UserError(f"training curve {path} is missing: run the training first")
    rows = []
    for count, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            rows.append(checked("curve", json.loads(line), f"line {count} of {path}"))
        except ValueError as error:
            raise UserError(f"line {count} of {path} is no JSON: run the training again") from error
    if not rows:
        raise UserError(f"training curve {path} holds no rows: run the training first")
    return rows


def read_panel(title: str, folder: Path, record: Entry) -> Panel:
    """The images and labels in `folder`; raises UserError where they do not fit the record."""
    images, labels = load_npy(folder / "images.npy"), load_npy(folder / "labels.npy")
    size = record["resolution"]
    fits = images.dtype == np.uint8 and images.shape == (*labels.shape, size, size, 3)
    if not fits or not len(images):
        raise UserError(
            f"{folder} has {images.dtype} images {images.shape} and labels {labels.shape}, not "
            f"uint8 (N, {size}, {size}, 3) and (N,): give the folder that belongs to the record"
        )
    if labels.max() >= len(record["classes"]):
        raise UserError(
            f"labels.npy in {folder} goes to {labels.max()}, but the record has "
            f"{len(record['classes'])} classes: give the folder that belongs to it"
        )
    return Panel(title, images, labels)


def read_samples(folder: Path, record: Entry) -> Panel:
    """One folder of samples, titled by its sampler and seed."""
    about = checked("sample", read_json(folder / "sample.json"), folder / "sample.json")
    return read_panel(f"samples: {about['sampler']}, seed {about['seed']}", folder, record)


def read_evaluation(path: Path, record: Entry) -> Entry:
    """One metrics file; raises UserError where it is damaged or of other classes."""
    result = checked("evaluation", read_json(path), path)
    checked("sample", result["sample"], f"`sample` of {path}")
    for place, metric in enumerate(result["metrics"]):
        checked("metric", metric, f"metric {place} of {path}")
        if metric.get("bracket"):
            checked("bracket", metric["bracket"], f"the bracket of {metric['name']} in {path}")
    if result.get("class_accuracy"):
        shares = checked("accuracy", result["class_accuracy"], f"`class_accuracy` of {path}")
        if len(shares["per_class"]) != len(record["classes"]):
            raise UserError(f"{path} and the record differ in classes: evaluate again")
    return result


def read_inputs(config: Config, words: Mapping[str, str]) -> Inputs:
    """Read and check everything; raises UserError with one sentence about the first problem."""
    missing = [f"{word}=..." for word in WORDS if not words.get(word)]
    if missing:
        raise UserError(f"the report needs {' '.join(missing)} on its command line")
    if Path(words["out"]).exists() and not Path(words["out"]).is_dir():
        raise UserError(f"out={words['out']} is a file: give a folder")
    record = checked("record", read_json(Path(words["record"])), words["record"])
    named = {key: record[key] for key in ("source", "resolution", "recipe")}
    pack = pack_folder(config.model_copy(update={"data": config.data.model_copy(update=named)}))
    real = read_panel("real", pack, record)
    if len(real.images) != record["num_images"]:
        raise UserError(f"pack {pack} is not that of {words['record']}: run downsample again")
    return Inputs(
        record,
        read_curve(Path(words["curve"])),
        [read_evaluation(Path(p), record) for p in words["metrics"].split(",")],
        [real, *(read_samples(Path(p), record) for p in words["samples"].split(","))],
    )


# --- pictures ----------------------------------------------------------------------------------


def samples_picture(inputs: Inputs, rows: int, columns: int) -> bytes:
    """PNG of real images beside each set of samples; samples without classes fill the rows."""
    panels, classes = inputs.panels, inputs.record["classes"]
    if panels[-1].labels.min() < 0:
        few = np.linspace(0, len(panels[0].labels) - 1, rows * columns).astype(int)
        panels = [panels[0]._replace(images=panels[0].images[few]), *panels[1:]]
        panels = [panel._replace(labels=np.zeros(len(panel.images), int)) for panel in panels]
        classes = ["any class"]
    stream = io.BytesIO()
    panel_grid(panels, classes, rows, columns, None).save(stream, format="PNG")
    return stream.getvalue()


# --- tables ------------------------------------------------------------------------------------


def table_rows(evaluations: Sequence[Entry]) -> list[Entry]:
    """One row a metric and set of samples, keyed as COLUMNS, grouped by metric."""
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
    """The class accuracy as a metric, where there is one."""
    shares = evaluation.get("class_accuracy")
    if not shares:
        return []
    metric = {"name": "class_accuracy", "label": "Class accuracy", "better": "higher"}
    num, real = evaluation["sample"]["num"], shares["floor"]["overall"]
    return [metric | {"value": shares["overall"], "num_images": num, "floor": real}]


def text(key: str, value: Any) -> str:
    """A table cell as people read it."""
    if isinstance(value, str):
        return ARROWS.get(value, value) if key == "better" else value
    return str(value) if key == "seed" else number(value)


def text_table(rows: Sequence[Entry], columns: Mapping[str, str]) -> list[str]:
    """Aligned lines of at most WIDTH characters: names left, numbers right.

    Columns without content are left out; the widest name is shortened where the line is too long.
    """
    shown = {k: v for k, v in columns.items() if any(row.get(k) is not None for row in rows)}
    cells = [list(shown.values()), *([text(k, row.get(k)) for k in shown] for row in rows)]
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


def summary(inputs: Inputs, title: str, rows: Sequence[Entry]) -> str:
    """The report as plain text of at most WIDTH columns."""
    samples = [evaluation["sample"] for evaluation in inputs.evaluations]
    lines = [title, *textwrap.wrap(training(inputs.curve), WIDTH), ""]
    lines += [*text_table(rows, TEXT_COLUMNS), "", *text_table(samples, SAMPLE_COLUMNS), ""]
    for line in remarks(inputs.evaluations):
        lines += textwrap.wrap(line, WIDTH, break_on_hyphens=False)
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
        inner = {key: html.escape(text(key, row.get(key))) for key in columns}
        exact = {key: "" if row.get(key) is None else row[key] for key in columns}
        lines.append("".join(html_cell("td", key, inner[key], exact[key]) for key in columns))
    body = "\n".join(f"<tr>{line}</tr>" for line in lines)
    return f"<table><thead><tr>{''.join(heads)}</tr></thead>\n<tbody>\n{body}\n</tbody></table>"


def html_cell(tag: str, key: str, inner: str, exact: object = "") -> str:
    """One cell with the HTML `inner`; it sorts by `exact`."""
    side = ' class="name"' if key in NAMES else ""
    return f'<{tag}{side} data-sort="{html.escape(str(exact))}">{inner}</{tag}>'


def class_table(inputs: Inputs) -> str:
    """The accuracy of each class by each set of samples, folded; empty where none is known."""
    shares = {
        f"{e['sample']['sampler']}, seed {e['sample']['seed']}": e["class_accuracy"]["per_class"]
        for e in inputs.evaluations
        if e.get("class_accuracy")
    }
    rows = [
        {"class": name} | {title: values[label] for title, values in shares.items()}
        for label, name in enumerate(inputs.record["classes"])
    ]
    table = html_table(rows, {key: key for key in ("class", *shares)})
    folded = f"<details><summary>Accuracy of each class</summary>\n{table}\n</details>"
    return folded if shares else ""


def page(inputs: Inputs, title: str, rows: Sequence[Entry]) -> str:
    """The table as one HTML file that needs nothing else."""
    return PAGE.substitute(
        title=html.escape(title),
        training=html.escape(training(inputs.curve)),
        table=html_table(rows, COLUMNS),
        text="\n".join(f"<p>{html.escape(line)}</p>" for line in remarks(inputs.evaluations)),
        classes=class_table(inputs),
    )


def main(argv: list[str]) -> None:
    """Write the report into the folder `out` and print its summary."""
    config, words = load_step(argv, WORDS)
    inputs, out = read_inputs(config, words), Path(words["out"])
    record, rows = inputs.record, table_rows(inputs.evaluations)
    title = f"{record['source']}_{record['resolution']}-{record['recipe']}"
    full = f"{title}: {record['num_images']:,} images of {len(record['classes']):,} classes"
    shown = summary(inputs, full, rows)
    outputs = {
        "curve.png": curve_chart(title, inputs.curve, record["num_images"]),
        "samples_vs_real.png": samples_picture(inputs, *config.report.model_dump().values()),
        "distance.png": distance_chart(title, rows),
        "table.html": page(inputs, full, rows).encode(),
        "summary.txt": shown.encode(),
    }
    for name, content in outputs.items():
        with atomic_stream(out / name) as stream:
            stream.write(content)
    encoding = sys.stdout.encoding or "ascii"
    print(shown.encode(encoding, "replace").decode(encoding), end="")


if __name__ == "__main__":
    run_main(main)
