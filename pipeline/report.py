"""The report of one run: training curve, samples beside real images, table of metrics.

    python -m pipeline.report curve=CURVE.jsonl record=RECORD.json samples=FOLDER[,FOLDER...] \
        metrics=FILE.json[,FILE.json...] out=FOLDER [config=...]

Reads what the earlier steps wrote, and the pack that the record names. Everything is read, checked
and drawn before the first file is written. Ends by printing the table.
"""

import io
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline.charts import curve_chart, distance_chart
from pipeline.config import load_step
from pipeline.errors import UserError, run_main
from pipeline.files import atomic_stream, load_npy, read_json
from pipeline.grid import Panel, panel_grid
from pipeline.keys import Config
from pipeline.layout import pack_folder, write_config
from pipeline.tables import Entry, page, summary, table_rows

WORDS = ("curve", "record", "samples", "metrics", "out")

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
    "real accuracy": {"overall": float},
    "bracket": {"num_images": int, "floor": float, "value": float, "ceiling": float},
}


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
        checked("real accuracy", shares["floor"], f"`class_accuracy.floor` of {path}")
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


# --- writing -----------------------------------------------------------------------------------


def samples_picture(inputs: Inputs, rows: int, columns: int) -> bytes:
    """PNG of real images beside each set of samples."""
    stream = io.BytesIO()
    picture = panel_grid(inputs.panels, inputs.record["classes"], rows, columns, None)
    picture.save(stream, format="PNG")
    return stream.getvalue()


def main(argv: list[str]) -> None:
    """Write the report into the folder `out` and print its summary."""
    config, words = load_step(argv, WORDS)
    inputs, out = read_inputs(config, words), Path(words["out"])
    record, evaluations = inputs.record, inputs.evaluations
    title = f"{record['source']}_{record['resolution']}-{record['recipe']}"
    full = f"{title}: {record['num_images']:,} images of {len(record['classes']):,} classes"
    shown = summary(full, inputs.curve, evaluations)
    outputs = {
        "curve.png": curve_chart(title, inputs.curve, record["num_images"]),
        "samples_vs_real.png": samples_picture(inputs, *config.report.model_dump().values()),
        "distance.png": distance_chart(title, table_rows(evaluations)),
        "table.html": page(full, inputs.curve, evaluations, record["classes"]).encode(),
        "summary.txt": shown.encode(),
    }
    for name, content in outputs.items():
        with atomic_stream(out / name) as stream:
            stream.write(content)
    write_config(out, config, "report")
    encoding = sys.stdout.encoding or "ascii"
    print(shown.encode(encoding, "replace").decode(encoding), end="")


if __name__ == "__main__":
    run_main(main)
