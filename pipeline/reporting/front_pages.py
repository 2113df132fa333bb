"""Pages that open on pictures: that of one run, and that of all experiments.

The page of a run is one file, pictures included. The page of all experiments, results/index.html,
has a card for each run that has a page, and shows the pictures that lie beside it.
"""

import base64
import html
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from pipeline.base.files import atomic_stream
from pipeline.base.text import number
from pipeline.reporting import overview, sentences
from pipeline.reporting.pages import page, paragraphs
from pipeline.reporting.records import Evaluation
from pipeline.reporting.score_rows import Row, comparable, frechet_rows, seed_rows, table_rows

FIGURES = {  # picture of a run -> what it shows
    "samples_vs_real.png": "Real images beside samples, one row per class.",
    "distance.png": "Distances between floor (other real images) and ceiling (noise).",
    "nfe.png": "Distance over evaluations of the network.",
    "surface.png": "The search for EMA width and guidance; the chosen one is marked.",
    "milestones.png": "Distance over the training.",
    "curve.png": "Training curve.",
}
INDEX = "index.html"
LEAD = "lead.txt"  # beside the page of a run: its sentences on the scores


def scores_in_words(evaluations: Sequence[Evaluation]) -> list[str]:
    """A sentence on the best Fréchet distance, and one on the class accuracy of its samples.

    The best of those that can be compared with that of the most samples.
    """
    # The best sampler
    rows = table_rows(evaluations)
    samplers = seed_rows(frechet_rows(rows))
    if not samplers:
        return [f"{row.label}: {number(row.value)}." for row in rows[:1]]
    most = comparable(max(samplers, key=lambda row: row.num_images))
    best = min((row for row in samplers if comparable(row) == most), key=lambda row: row.mean)

    # In words
    several = "," in best.seeds
    seeds, images = ("seeds", "images of the first seed") if several else ("seed", "images")
    text = f"{best.label}: {number(best.mean)} for {best.num_images:,} samples"
    sentences = [f"{text} ({best.sampler}, {seeds} {best.seeds}){between(best, images)}."]
    accuracies = [r for r in rows if r.name == "class_accuracy" and r.sampler == best.sampler]
    for row in accuracies[:1]:
        real = f" (real images: {row.real:.1%})" if row.real is not None else ""
        sentences.append(f"{row.value:.1%} of the samples are classified as their class{real}.")
    return sentences


def between(row: Row, images: str) -> str:
    """Where a distance of so many `images` lies between floor and ceiling; empty without them."""
    if row.bracket is None:
        return ""
    place = row.bracket
    share = (place.value - place.floor) / (place.ceiling - place.floor)
    return (
        f"; at {place.num_images:,} {images} {number(place.value)}, {share:.0%} of the way from "
        f"{number(place.floor)} (other real images) to {number(place.ceiling)} (noise)"
    )


# --- one run -------------------------------------------------------------------------------------


def run_page(
    title: str,
    evaluations: Sequence[Evaluation],
    pictures: Mapping[str, bytes],
    more: Sequence[str],
    links: Mapping[str, str],
) -> str:
    """The page of one run; `pictures`: PNG by name of FIGURES, `more`: further parts in HTML.

    `links`: text -> address, relative to the page.
    """
    # The newest look at the data first
    shown = [name for name in FIGURES if name in pictures]
    sources = {name: f"data:image/png;base64,{encoded(pictures[name])}" for name in shown}
    first, *others = (figure(source, FIGURES[name]) for name, source in sources.items())
    lead = "\n".join(f'<p class="lead">{html.escape(s)}</p>' for s in scores_in_words(evaluations))
    return page(title, [lead, first, f'<div class="columns">{"".join(others)}</div>', *more,
                        "<h2>Files</h2>", link_list(links)])  # fmt: skip


def encoded(png: bytes) -> str:
    """A picture as the text of a data address."""
    return base64.b64encode(png).decode()


def figure(source: str, caption: str) -> str:
    """A picture with its caption."""
    text = html.escape(caption)
    return f'<figure><img src="{source}" alt="{text}"><figcaption>{text}</figcaption></figure>'


def link_list(links: Mapping[str, str]) -> str:
    """Links, one a line; an address is a path, so that its # or ? is part of a name."""
    lines = (
        f'<li><a href="{quote(os.fsencode(address))}">{html.escape(text)}</a></li>'
        for text, address in links.items()
    )
    return f"<ul>{''.join(lines)}</ul>"


def relative(targets: Sequence[Path], folder: Path) -> dict[str, str]:
    """Links from a page in `folder` to files and folders, named by their address from there."""
    addresses = [Path(os.path.relpath(target, folder)).as_posix() for target in targets]
    return {address: address for address in addresses}


# --- all experiments -----------------------------------------------------------------------------


def write_cards(results: Path) -> Path:
    """Write results/index.html, a card for each run that has a page, the newest first."""
    # Scores by run
    evaluations: dict[tuple[str, str], list[Evaluation]] = {}
    for entry in overview.read(results)[0]:
        evaluations.setdefault((entry.experiment, entry.data), []).append(entry.evaluation)

    # The newest first
    runs = sorted(results.glob(f"*/*/report/{INDEX}"), key=lambda p: -p.stat().st_mtime)
    cards = [card(run, results, evaluations) for run in runs]
    scores = link_list({"The scores of all experiments as a table": "experiments.html"})
    grid = f'<div class="grid">{"".join(cards)}</div>' if cards else paragraphs(["No runs yet."])
    with atomic_stream(results / INDEX) as stream:
        stream.write(page("Experiments", [grid, scores]).encode(errors="backslashreplace"))
    return results / INDEX


def card(
    run: Path, results: Path, evaluations: Mapping[tuple[str, str], Sequence[Evaluation]]
) -> str:
    """The card of a run's page: name, picture, scores; a click opens it.

    `evaluations`: those of each experiment and data.
    """
    experiment, data = run.parts[-4:-2]
    scores = evaluations.get((experiment, data), [])
    address = quote(os.fsencode(run.relative_to(results)))
    pictures = [run.parent / file for file in ("samples_vs_real.png", "curve.png")]
    shown = next((path for path in pictures if path.exists()), pictures[0])
    picture = quote(os.fsencode(shown.relative_to(results)))
    name = html.escape(f"{experiment}, {data}")
    of_sentences = sentences.read_of_run(run.parents[1] / "metrics")
    if (lead := run.with_name(LEAD)).exists():  # metrics of other samplers may lie there, too
        lines = lead.read_bytes().decode().splitlines()
    else:
        lines = sentences.in_words(of_sentences) if of_sentences else scores_in_words(scores)
    return (
        f'<article><a href="{address}"><h2>{name}</h2>'
        f'<img src="{picture}" alt="{name}" loading="lazy"></a>{paragraphs(lines)}</article>'
    )
