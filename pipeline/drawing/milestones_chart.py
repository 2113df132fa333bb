"""The chart of a training's scores at its milestones."""

from collections.abc import Sequence
from typing import Protocol

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from pipeline.base.text import number, short_number
from pipeline.drawing.charts import GOOD, INK, plain_log, png

SPAN = 4  # times that the largest value is the smallest, from which on an axis is logarithmic
LABELLED = 12  # points that each have their number; of more, first, best and last


class Point(Protocol):
    """The score of a milestone."""

    @property
    def images(self) -> int: ...  # seen in training
    @property
    def distance(self) -> float: ...  # to the real images


def milestones_chart(title: str, points: Sequence[Point], protocol: str) -> bytes:
    """PNG of the distance over images seen; `points`: at least one, by images seen.

    `protocol` stands below the title in small print.
    """
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axis = figure.subplots()
    figure.suptitle(title)
    axis.set_title(protocol, fontsize=9, loc="left")

    # The curve, and its best point
    images, distances = [p.images for p in points], [p.distance for p in points]
    axis.plot(images, distances, color=INK, marker="o", markersize=6, linewidth=1.8)
    best = min(points, key=lambda point: point.distance)
    label = f"best: {number(best.distance)} at {best.images:,} images"
    axis.plot([best.images], [best.distance], color=GOOD, marker="o", markersize=10,
              linestyle="", label=label)  # fmt: skip
    write_numbers(axis, points, best)
    frame(axis, images, distances)
    return png(figure)


def write_numbers(axis: Axes, points: Sequence[Point], best: Point) -> None:
    """The distance above each of the points, or above a few of many."""
    shown = points if len(points) <= LABELLED else [points[0], best, points[-1]]
    for point in {p.images: p for p in shown}.values():
        axis.annotate(
            number(point.distance), (point.images, point.distance), (4, 7),
            textcoords="offset points", ha="left", fontsize=9,
            color=GOOD if point is best else INK,
        )  # fmt: skip


def frame(axis: Axes, images: Sequence[int], distances: Sequence[float]) -> None:
    """Scales, names, grid and legend."""
    # Images below, plain unless they span decades
    if max(images) > 20 * min(images):
        plain_log(axis, "x", min(images), max(images))
    else:
        axis.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 4, 5, 8, 10]))
        axis.xaxis.set_major_formatter(FuncFormatter(short_number))
    # Distances at the side
    if 0 < SPAN * min(distances) < max(distances):
        plain_log(axis, "y", min(distances), max(distances))
    axis.margins(x=0.09, y=0.12)
    axis.set_xlabel("images seen in training")
    axis.set_ylabel("distance to the real images")
    axis.grid(alpha=0.25)
    axis.legend()
