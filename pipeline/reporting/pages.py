"""Tables as pages of HTML that need nothing else; a click on a heading sorts."""

import html
import string
from collections.abc import Mapping, Sequence

from pipeline.reporting import score_rows, score_sheet, tables
from pipeline.reporting.records import CurveRow, Evaluation
from pipeline.reporting.tables import NAMES, Cell, cell_text, cells

PAGE = string.Template("""<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><title>$title</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body { font: 13px/1.4 system-ui, sans-serif; margin: 1.5em; color: #222; background: #fff }
h2 { font-size: 1.1em; margin: 1.5em 0 0 }
div { overflow-x: auto }
table { border-collapse: collapse; margin: .6em 0 1em }
th, td { padding: .3em .5em; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap }
th { border-bottom: 2px solid #1f4e79 }
.name { text-align: left }
button { all: unset; cursor: pointer; font-weight: bold }
button:focus-visible { outline: 2px solid #1f4e79 }
[aria-sort=ascending] button::after { content: " ▲" }
[aria-sort=descending] button::after { content: " ▼" }
tbody tr:hover { background: #eef3f8 }
p { max-width: 70em; overflow-wrap: anywhere }
.lead { font-size: 1.2em; margin: .5em 0 }
figure { margin: 1em 0; break-inside: avoid }
.columns { columns: 34em; column-gap: 1.5em }
.columns figure { margin: 0 0 1em }
img { max-width: 100%; height: auto }
figcaption { color: #555 }
.grid { display: grid; gap: 1.5em; grid-template-columns: repeat(auto-fill, $column) }
article { border: 1px solid #ddd; border-radius: 6px; padding: 0 1em .5em; min-width: 0 }
article h2, article h3 { margin: .6em 0 }
dt { color: #555 }
dd { margin: 0 0 .5em }
a { color: #1f4e79 }
</style></head>
<body>
<h1>$title</h1>
$body
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


COLUMN = "minmax(min(26em, 100%), 1fr)"  # of a grid: one on a narrow screen


def page(title: str, parts: Sequence[str]) -> str:
    """One file of HTML with the `parts`, HTML themselves, below each other."""
    return PAGE.substitute(
        title=html.escape(title), column=COLUMN, body="\n".join(filter(None, parts))
    )


def paragraphs(lines: Sequence[str]) -> str:
    """Each line of text as a paragraph."""
    return "\n".join(f"<p>{html.escape(line)}</p>" for line in lines)


def html_table(rows: Sequence[Mapping[str, Cell]], columns: Mapping[str, str]) -> str:
    """A table whose headings sort it; `columns`: key of a row -> heading.

    Columns without content are left out.
    """
    # headings as buttons
    shown = {k: v for k, v in columns.items() if any(row.get(k) is not None for row in rows)}
    buttons = {key: f"<button>{html.escape(name)}</button>" for key, name in shown.items()}
    heads = (html_cell("th", key, button) for key, button in buttons.items())
    # cells as people read them, with the exact value to sort by
    lines = []
    for row in rows:
        inner = {key: html.escape(cell_text(key, row.get(key))) for key in shown}
        exact = {key: "" if row.get(key) is None else row[key] for key in shown}
        lines.append("".join(html_cell("td", key, inner[key], exact[key]) for key in shown))
    body = "\n".join(f"<tr>{line}</tr>" for line in lines)
    head = f"<thead><tr>{''.join(heads)}</tr></thead>"
    return f"<div><table>{head}\n<tbody>\n{body}\n</tbody></table></div>"


def html_cell(tag: str, key: str, inner: str, exact: object = "") -> str:
    """One cell with the HTML `inner`; it sorts by `exact`."""
    side = ' class="name"' if key in NAMES else ""
    return f'<{tag}{side} data-sort="{html.escape(str(exact))}">{inner}</{tag}>'


def class_table(
    title: str, columns: Mapping[str, Sequence[float | None]], classes: Sequence[str]
) -> str:
    """A folded table of one number per class for each of `columns`; empty without columns."""
    rows: list[dict[str, Cell]] = [
        {"class": name} | {title: values[label] for title, values in columns.items()}
        for label, name in enumerate(classes)
    ]
    table = html_table(rows, {key: key for key in ("class", *columns)})
    folded = f"<details><summary>{html.escape(title)}</summary>\n{table}\n</details>"
    return folded if columns else ""


def accuracies(evaluations: Sequence[Evaluation]) -> dict[str, Sequence[float | None]]:
    """The accuracy of each class by each set of samples that has one."""
    return {
        evaluation.sample.title: evaluation.class_accuracy.per_class
        for evaluation in evaluations
        if evaluation.class_accuracy
    }


def report_parts(
    curve: Sequence[CurveRow],
    evaluations: Sequence[Evaluation],
    classes: Sequence[str],
    counts: Mapping[str, Sequence[int]],
    notes: Sequence[str] = (),
) -> list[str]:
    """The tables of one run; `classes`: names in label order, `counts`: set -> images of each."""
    # rows of the two tables
    rows = score_rows.table_rows(evaluations)
    over = score_rows.seed_rows(score_rows.frechet_rows(rows))
    sheets = score_sheet.sheet_rows(evaluations)
    heading = f"<h2>{score_rows.seeds_title(over)}</h2>\n"
    seeds = html_table(cells(over, tables.SEED_COLUMNS), tables.SEED_COLUMNS)
    return [
        paragraphs([tables.training(curve)]),
        heading + seeds if over else "",
        "<h2>Every set of samples</h2>",
        html_table(cells(rows, tables.COLUMNS), tables.COLUMNS),
        "<h2>Score sheet</h2>",
        html_table(cells(sheets, score_sheet.COLUMNS), score_sheet.COLUMNS),
        paragraphs([*notes, score_sheet.LEGEND, *tables.remarks(evaluations)]),
        class_table("Accuracy of each class", accuracies(evaluations), classes),
        class_table("Images of each class", counts, classes),
    ]
