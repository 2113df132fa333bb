"""The report of one run: training curve, samples beside real images, table of metrics.

    python -m pipeline.report curve=CURVE.jsonl record=RECORD.json \
        'samples=[FOLDER, ...]' 'metrics=[FILE.json, ...]' out=FOLDER \
        [choice=CHOICE.json] [milestones=CURVE.jsonl] [duals=FILE.npz] ['solvers=[FILE.json, ...]']

Of documents (workload=concept) it takes curve, record, metrics and out alone: curve, table of
predictors, examples (pipeline/concept/page.py).

Reads the files of the earlier steps, and the pack that the record names. Everything is read,
checked and drawn before the first file is written. Ends by printing the table, or in the brief form
(pipeline/launching/console.py) the score in a sentence.
"""

import html
import io
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml

from pipeline.base.errors import UserError, run_main
from pipeline.base.files import atomic_stream
from pipeline.base.npy import load_npy
from pipeline.concept.page import documents_report
from pipeline.config.load import load_step
from pipeline.config.paths import RESULTS, out_folder, pack_folder, run_folder
from pipeline.config.schema import Config, Report
from pipeline.config.stages import write_config
from pipeline.data.duals import Duals, load_duals
from pipeline.data.pack import Record
from pipeline.drawing.charts import distance_chart, nfe_chart
from pipeline.drawing.curve import curve_chart
from pipeline.drawing.surface import surface_chart
from pipeline.drawing.tiles import Panel, panel_grid
from pipeline.images.sources.find import resolve_image_set
from pipeline.launching import console
from pipeline.reporting.front_pages import INDEX, LEAD, relative, run_page, scores_in_words
from pipeline.reporting.learned import LearnedSolver
from pipeline.reporting.milestones import COLUMNS, PICTURE, MilestoneRow, in_words, read_milestones
from pipeline.reporting.pages import html_table, page, report_parts
from pipeline.reporting.records import CurveRow, Evaluation, SampleAbout, read_curve
from pipeline.reporting.score_rows import frechet_rows, protocol_texts, table_rows
from pipeline.reporting.selection import chosen_in_words
from pipeline.reporting.tables import cells, numbered, short_hashes, summary
from pipeline.reporting.trials import Choice
from pipeline.steps import STEPS

WORDS = STEPS["report"].words
OPTIONAL = ("choice", "milestones", "duals", "solvers")  # words that may be missing

PANELS = 4  # samplers in the picture beside real images


# --- reading -----------------------------------------------------------------------------------


class Inputs(NamedTuple):
    """All that the report shows."""

    record: Record
    curve: list[CurveRow]
    evaluations: list[Evaluation]
    real: Panel
    samples: list[tuple[str, Panel]]  # sampler and images, in the order of the command line
    choice: Choice | None  # what rule `select` chose; None: nothing is chosen after the training
    milestones: list[MilestoneRow]  # by images seen; empty: they are not scored
    duals: Duals | None  # of the training's coupling; None: it has none
    solvers: list[LearnedSolver]  # that were fitted


def read_panel(title: str, folder: Path, record: Record) -> Panel:
    """The images and labels in `folder`; raises UserError if they do not fit the record."""
    images, labels = load_npy(folder / "images.npy"), load_npy(folder / "labels.npy")
    size = record.resolution
    fits = images.dtype == np.uint8 and images.shape == (*labels.shape, size, size, 3)
    if not fits or not len(images):
        raise UserError(
            f"{folder} has {images.dtype} images {images.shape} and labels {labels.shape}, not "
            f"uint8 (N, {size}, {size}, 3) and (N,): give the folder that belongs to the record"
        )
    if labels.max() >= len(record.classes):
        raise UserError(
            f"labels.npy in {folder} goes to {labels.max()}, but the record has "
            f"{len(record.classes)} classes: give the folder that belongs to it"
        )
    return Panel(title, images, labels)


def read_samples(folder: Path, record: Record) -> tuple[str, Panel]:
    """The sampler of one folder of samples, and its panel, titled by sampler and seed."""
    about = SampleAbout.read(folder / "sample.json")
    return about.sampler, read_panel(about.title, folder, record)


def read_scores(path: Path, record: Record) -> Evaluation:
    """One metrics file; raises UserError if it is damaged or of other classes."""
    evaluation = Evaluation.read(path)
    shares = evaluation.class_accuracy
    if shares and len(shares.per_class) != len(record.classes):
        raise UserError(f"{path} and the record differ in classes: evaluate again")
    return evaluation


def listed(word: str) -> list[Path]:
    """The paths that a word names: one, or several as a list in YAML."""
    if not word.startswith("["):
        return [Path(word)]
    try:
        return [Path(str(path)) for path in yaml.safe_load(word)]
    except yaml.YAMLError as error:
        raise UserError(f"{word} is not a list: write [PATH, PATH, ...]") from error


def read_inputs(config: Config, words: Mapping[str, str]) -> Inputs:
    """Everything that the report shows, checked; raises UserError about the first problem."""
    # words of the command line
    missing = [f"{word}=..." for word in WORDS if word not in OPTIONAL and not words.get(word)]
    if missing:
        raise UserError(f"the report needs {' '.join(missing)} on its command line")
    out_folder(Path(words["out"]))
    # the real images
    record = Record.read(Path(words["record"]))
    named = {key: getattr(record, key) for key in ("source", "resolution", "recipe")}
    pack = pack_folder(config.model_copy(update={"data": config.data.model_copy(update=named)}))
    real = read_panel("real", pack, record)
    if len(real.images) != record.num_images:
        raise UserError(f"pack {pack} is not that of {words['record']}: run downsample again")
    return Inputs(
        record,
        read_curve(Path(words["curve"])),
        [read_scores(Path(p), record) for p in listed(words["metrics"])],
        real,
        [read_samples(Path(p), record) for p in listed(words["samples"])],
        Choice.read(Path(words["choice"])) if "choice" in words else None,
        read_milestones(Path(words["milestones"])) if "milestones" in words else [],
        load_duals(Path(words["duals"])) if "duals" in words else None,
        [LearnedSolver.read(Path(p)) for p in listed(words.get("solvers", "[]"))],
    )


# --- writing -----------------------------------------------------------------------------------


def first_seeds(samples: list[tuple[str, Panel]]) -> dict[str, Panel]:
    """The first panel of each sampler, in order."""
    panels: dict[str, Panel] = {}
    for sampler, panel in samples:
        panels.setdefault(sampler, panel)
    return panels


def left_out(inputs: Inputs) -> list[str]:
    """One sentence about the samplers that the picture leaves out, if there are too many."""
    samplers = list(first_seeds(inputs.samples))[PANELS:]
    note = f"Note: samples_vs_real.png shows the first {PANELS} samplers, not {', '.join(samplers)}"
    return [note] if samplers else []


def samples_picture(inputs: Inputs, keys: Report) -> bytes:
    """PNG of real images beside the first seed of the first samplers."""
    stream = io.BytesIO()
    panels = [inputs.real, *list(first_seeds(inputs.samples).values())[:PANELS]]
    picture = panel_grid(panels, inputs.record.classes, keys.grid_classes, keys.grid_columns, None)
    picture.save(stream, format="PNG")
    return stream.getvalue()


def made_in_words(inputs: Inputs) -> list[str]:
    """Sentences about the training's coupling, and about solvers that were fitted."""
    notes = [solver.in_words() for solver in inputs.solvers]
    if inputs.duals:
        coupling = "The training pairs noise and images by semidiscrete transport"
        notes.insert(0, f"{coupling}: {inputs.duals.in_words()}.")
    return notes


def class_counts(inputs: Inputs) -> dict[str, list[int]]:
    """Images of each class among the real ones and in each set of samples that has classes."""
    num = len(inputs.record.classes)
    panels = [inputs.real, *(panel for _, panel in inputs.samples)]
    return {
        panel.title: np.bincount(panel.labels, minlength=num).tolist()
        for panel in panels
        if (panel.labels >= 0).all()
    }


def experiment(out: Path) -> str:
    """The experiment of a report in results/<experiment>/<data>/report; empty elsewhere."""
    inside = RESULTS.absolute() in out.absolute().parents
    return out.absolute().relative_to(RESULTS.absolute()).parts[0] if inside else ""


def links(words: Mapping[str, str], out: Path) -> dict[str, str]:
    """Links of the page in `out`: its tables, and the files that it was made of."""
    given = [Path(words["curve"]), *listed(words["samples"]), *listed(words["metrics"])]
    given += [Path(words["choice"])] if "choice" in words else []
    given += [Path(words["milestones"])] if "milestones" in words else []
    given += listed(words.get("solvers", "[]"))
    index = [RESULTS / INDEX] if experiment(out) else []
    return relative([out / "table.html", out / "summary.txt", *given, *index], out)


def over_training(words: Mapping[str, str]) -> dict[str, bytes]:
    """The picture of the milestones' scores, which lies beside them; none without them."""
    if "milestones" not in words:
        return {}
    path = Path(words["milestones"]).with_name(PICTURE)
    if not path.is_file():
        raise UserError(f"{path} is missing: {MilestoneRow.REMEDY}")
    return {"milestones.png": path.read_bytes()}


def milestones_part(rows: list[MilestoneRow]) -> list[str]:
    """The scores over the training as a table, HTML; none if there are none."""
    if not rows:
        return []
    return [f"<h2>Over the training: {html.escape(rows[0].label)}</h2>\n"
            + html_table(cells(rows, COLUMNS), COLUMNS)]  # fmt: skip


def report_documents(config: Config, words: Mapping[str, str]) -> None:
    """The report of a run on documents: pipeline/concept/page.py."""
    out = out_folder(Path(words.get("out", run_folder(config) / "report")))
    index = [RESULTS / INDEX] if experiment(out) else []
    result = documents_report(words, experiment(out), out, index)
    write_config(out, config, "report")
    write(out, result.files, result.lead)


def write(out: Path, outputs: Mapping[str, bytes], lead: list[str]) -> None:
    """Write the files, and print the summary or, in the brief form, the score in sentences."""
    for name, content in outputs.items():
        with atomic_stream(out / name) as stream:
            stream.write(content)
    brief = "\n".join(lead) + "\n"
    text = brief if console.is_brief() else outputs["summary.txt"].decode()
    encoding = sys.stdout.encoding or "ascii"
    print(text.encode(encoding, "replace").decode(encoding), end="")


def main(argv: list[str]) -> None:
    """Write the report into the folder `out` and print its summary."""
    config, words = load_step(argv, WORDS)
    if config.workload == "concept":
        report_documents(config, words)
        return
    config = resolve_image_set(config)
    inputs, out = read_inputs(config, words), Path(words["out"])
    write_config(out, config, "report")
    record, evaluations = inputs.record, inputs.evaluations
    # texts
    title = record.name
    full = f"{title}: {record.num_images:,} images of {len(record.classes):,} classes"
    rows = table_rows(evaluations)
    notes = [*chosen_in_words(inputs.choice, rows), *left_out(inputs)]
    notes += [in_words(inputs.milestones)] if inputs.milestones else []
    notes += made_in_words(inputs)
    counts = class_counts(inputs)
    protocols = [short_hashes(line) for line in numbered(protocol_texts(evaluations))]
    shown = summary(full, inputs.curve, evaluations, notes)
    heading, lead = f"{experiment(out)}: {full}".removeprefix(": "), scores_in_words(evaluations)
    tables = report_parts(inputs.curve, evaluations, record.classes, counts, notes)
    tables += milestones_part(inputs.milestones)
    # every file in memory before the first is written
    pictures = {
        "curve.png": curve_chart(title, inputs.curve, record.num_images),
        "samples_vs_real.png": samples_picture(inputs, config.report),
        "distance.png": distance_chart(title, rows),
        "nfe.png": nfe_chart(title, frechet_rows(rows), protocols),
    }
    if choice := inputs.choice:
        parts = (choice.sampler, choice.metric, choice.tries, choice.chosen)
        pictures["surface.png"] = surface_chart(*parts)
    shown_pictures = pictures | over_training(words)
    index = run_page(heading, evaluations, shown_pictures, tables, links(words, out))
    texts = {"index.html": index, "table.html": page(full, tables), "summary.txt": shown}
    texts[LEAD] = "\n".join(lead)
    # names of classes that are not UTF-8 are written as on a terminal
    outputs = pictures | {k: v.encode(errors="backslashreplace") for k, v in texts.items()}
    write(out, outputs, lead)


if __name__ == "__main__":
    run_main(main)
