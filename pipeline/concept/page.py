"""The report of a run on documents: the score in a sentence, curve, table, examples, protocol."""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pipeline.base.errors import UserError
from pipeline.base.json_objects import mapping_at
from pipeline.base.progress import clock
from pipeline.base.text import number
from pipeline.concept.pack import Record
from pipeline.concept.predictions import PredictAbout
from pipeline.concept.score_record import Example, Scores
from pipeline.drawing.curve import curve_chart
from pipeline.reporting.front_pages import encoded, figure, link_list, relative
from pipeline.reporting.pages import html_table, page, paragraphs
from pipeline.reporting.records import CurveRow, read_curve
from pipeline.reporting.sentences import COLUMNS, LEGEND, in_words, predictor_rows
from pipeline.reporting.tables import cells, short_hashes, text_table, wrapped

WORDS = ("curve", "record", "metrics")  # that must be given
CAPTION = "Training curve; dashed: the squared error of the two baselines on held-out documents."
OF_NOISE = "Training curve: the squared error of sentences out of noise of all levels."


class DocumentsReport(NamedTuple):
    """The files of a report by their names, and the score in sentences."""

    files: dict[str, bytes]
    lead: list[str]


def documents_report(
    words: Mapping[str, str], experiment: str, out: Path, index: Sequence[Path]
) -> DocumentsReport:
    """The report in the folder `out`, of the files that the words name.

    `experiment` may be empty; `index`: a page that leads to this one. Raises UserError about the
    first problem.
    """
    # Everything that is shown
    missing = [f"{word}=..." for word in WORDS if not words.get(word)]
    if missing:
        raise UserError(f"the report needs {' '.join(missing)} on its command line")
    record, curve = Record.read(Path(words["record"])), read_curve(Path(words["curve"]))
    scores = Scores.read(Path(words["metrics"]))
    if scores.predictions.record.sha256 != record.sha256:
        raise UserError(
            f"{words['metrics']} is of other documents than {words['record']}: score again"
        )

    # Texts and pictures
    title = f"{experiment}: {titled(record)}".removeprefix(": ")
    levels = {"ridge regression, held out": scores.ridge, "mean vector, held out": scores.mean}
    if scores.predictions.denoised:  # its loss is not that of a prediction
        levels = {}
    errors = {name: row.squared_error for name, row in levels.items()}
    chart = curve_chart(title, curve, scores.fit.num_pieces, "pieces", errors)
    notes = [trained(curve, scores.fit.num_documents), *protocol(scores)]
    given = [out / "summary.txt", *(Path(words[word]) for word in WORDS), *index]
    links = relative(given, out)
    outputs = {
        "curve.png": chart,
        "index.html": html_page(title, scores, chart, notes, links).encode(),
        "summary.txt": summary(title, scores, notes).encode(),
    }
    return DocumentsReport(outputs, in_words(scores))


def titled(record: Record) -> str:
    """The documents in words."""
    return (
        f"{record.name}, {record.num_sentences:,} sentences of {record.num_documents:,} documents"
    )


def html_page(
    title: str, scores: Scores, chart: bytes, notes: Sequence[str], links: Mapping[str, str]
) -> str:
    """The page, pictures included."""
    lead = "\n".join(f'<p class="lead">{html.escape(line)}</p>' for line in in_words(scores))
    source = f"data:image/png;base64,{encoded(chart)}"
    table = html_table(cells(predictor_rows(scores), COLUMNS), COLUMNS)
    return page(
        title,
        [
            lead,
            "<h2>Three predictions of the same sentences</h2>",
            table,
            paragraphs([LEGEND]),
            figure(source, OF_NOISE if scores.predictions.denoised else CAPTION),
            *examples_part(scores.examples),
            "<h2>Protocol</h2>",
            paragraphs([short_hashes(note) for note in notes]),
            "<h2>Files</h2>",
            link_list(links),
        ],
    )


def examples_part(examples: Sequence[Example]) -> list[str]:
    """The examples as HTML: context, true sentence, nearest sentence; none if there are none."""
    cards = []
    for example in examples:
        hit = "its own sentence" if example.nearest == example.true else "another one"
        rows = {
            "before": example.before,
            "true": example.true,
            f"nearest to the prediction: {hit}": example.nearest,
        }
        lines = "\n".join(
            f"<dt>{html.escape(name)}</dt><dd>{html.escape(text)}</dd>"
            for name, text in rows.items()
        )
        place = f"Document {example.document:,}, sentence {example.place + 1:,}"
        cards.append(f"<article><h3>{place}</h3><dl>{lines}</dl></article>")
    if not cards:
        return []
    heading = "<h2>Examples: the scored sentence that is nearest to a prediction</h2>"
    return [heading, f'<div class="grid">{"".join(cards)}</div>']


def summary(title: str, scores: Scores, notes: Sequence[str]) -> str:
    """The report as plain text."""
    rows = cells(predictor_rows(scores), COLUMNS)
    lines = [*wrapped(title), ""]
    for sentence in in_words(scores):
        lines += wrapped(sentence)
    lines += ["", *text_table(rows, COLUMNS), ""]
    for line in [LEGEND, *notes]:
        lines += wrapped(line)
    return "\n".join(lines) + "\n"


def trained(curve: Sequence[CurveRow], num_documents: int) -> str:
    """A sentence about the training."""
    last = curve[-1]
    cost = "" if last.gpu_hours is None else f", {number(last.gpu_hours)} device-hours"
    return (
        f"Training: {last.images:,} pieces of {num_documents:,} documents in {last.step:,} steps, "
        f"wall time {clock(last.seconds)}{cost}."
    )


def denoising(about: PredictAbout) -> str:
    """How predictions came out of noise, in a sentence."""
    keys = about.keys
    start = f"from noise of standard deviation {keys.initial_noise:g}, seed {keys.noise_seed}"
    if not about.samples:
        return (
            f"Predictions: by one step of DDIM {start}, which is not guided: the mean of what "
            "could follow, as far as the network knows it."
        )
    guidance = f"guidance {keys.guidance:g} (rescaled by {keys.guidance_rescale:g})"
    return (
        f"Predictions: one sample each, in {keys.denoising_steps} steps of DDIM {start}, "
        f"{'without guidance' if keys.guidance == 1 else guidance}."
    )


def predicted(about: PredictAbout) -> str:
    """Which sentences were predicted, and from what, in a sentence."""
    if about.record.sha256.prompts:
        return (
            "Each sentence of a pair's target is predicted from its prompt and the sentences "
            "before it, those of prompts never."
        )
    return (
        f"Each sentence but the first of a piece of {about.keys.max_sentences} is predicted from "
        "those before it in the piece."
    )


def protocol(scores: Scores) -> list[str]:
    """How the scores came about, in sentences."""
    about, fit = scores.predictions, scores.fit
    keys, precision = about.keys, mapping_at(about.config, "sample")["precision"]
    versions = f", torch {about.train.torch}" if about.train.torch else ""
    return [
        f"Documents: {keys.held_out:.0%} are held out of the training, chosen by their numbers "
        f"alone; of them whole ones are scored, in their order, until "
        f"concept.num_scored={keys.num_scored:,} sentences are reached. {predicted(about)}",
        f"Baselines: the mean of {fit.num_pairs:,} sentences of the {fit.num_documents:,} training "
        f"documents, and a ridge regression of them on the sentence before, with a strength of "
        f"{number(fit.strength)} per pair, which was the best on a tenth of these documents.",
        *([denoising(about)] if about.denoised else []),
        f"Weights {about.weights_sha256}, pack {about.record.sha256.vectors}, "
        f"precision {precision}{versions}; predicted on {about.device}, "
        f"{about.world_size} rank{'s' if about.world_size > 1 else ''}, in {about.seconds:g} s.",
    ]
