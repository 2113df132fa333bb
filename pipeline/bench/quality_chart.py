"""The curves of the newest run of `quality`: distance and class accuracy over images seen.

python -m pipeline.bench.quality_chart results/benchmarks/quality.json docs/edm2-quality.png
"""

import sys
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from pipeline.base.files import atomic_stream, read_json
from pipeline.base.text import short_number
from pipeline.bench.quality import best_rows
from pipeline.drawing.charts import FAMILIES, png

PANELS = {"distance": "distance to the real images", "accuracy": "class accuracy"}


def chart(run: dict[str, Any]) -> bytes:
    """PNG with a panel for each score and a line for each network, its seeds as dots on it."""
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    figure.suptitle("Networks under flow matching at equal cost: means over seeds, and each seed")
    panels = figure.subplots(1, len(PANELS))
    for axis, (key, name) in zip(panels, PANELS.items(), strict=True):
        draw(axis, run, key)
        axis.set(ylabel=name, xlabel="images seen in training")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return png(figure)


def draw(axis: Axes, run: dict[str, Any], key: str) -> None:
    """One panel: the score `key` of each network at its best rate."""
    for (name, points), colour in zip(run["curves"].items(), FAMILIES, strict=False):
        rows = best_rows(run["trainings"], name)
        images = [point["images"] for point in points]
        label = f"{name}, learning rate {rows[0]['rate']:g}"
        axis.plot(
            images, [point[key] for point in points], color=colour, linewidth=1.8, label=label
        )
        for row in rows:
            values = [point[key] for point in row["points"]]
            axis.plot(images, values, color=colour, marker="o", markersize=4.5, linestyle="")
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(FixedLocator(images))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(short_number))
    axis.set_ylim(bottom=0)
    axis.margins(x=0.08)
    axis.grid(alpha=0.25)


def main(source: Path, out: Path) -> None:
    """Draw the newest run of a record."""
    with atomic_stream(out) as stream:
        stream.write(chart(read_json(source)["runs"][-1]))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
