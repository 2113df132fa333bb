"""The choice of rule `select`, in the words of a report."""

from collections.abc import Sequence

from pipeline.base.text import number
from pipeline.drawing.surface import in_words
from pipeline.reporting.score_rows import Row, frechet_rows
from pipeline.reporting.trials import Choice


def chosen_in_words(choice: Choice | None, rows: Sequence[Row]) -> list[str]:
    """Sentences on the search and on the chosen sampler's scores; none without a choice.

    `rows`: all scores of the reported samples.
    """
    # The search
    if choice is None:
        return []
    seeds = ", ".join(map(str, choice.seeds))
    sentences = [
        f"Chosen after the training by search={choice.search}, {len(choice.tries)} tries of "
        f"{choice.num:,} samples with seed {seeds}: {in_words(choice.chosen)}, "
        f"distance {number(choice.chosen.distance)} ({choice.metric})."
    ]

    # The scores that count
    reported = [row for row in frechet_rows(list(rows)) if row.sampler.endswith("-select")]
    for row in reported:
        sentences.append(
            f"The chosen one on reported seed {row.seed}: {row.label} {number(row.value)} for "
            f"{row.num_images:,} samples ({row.sampler})."
        )
    if not reported:
        sentences.append("No reported sampler uses the choice: set sample.selected=true for one.")
    return [
        *sentences,
        "The distance of the search is not comparable with reported ones: it is of another number "
        "of images, and the smallest of several.",
    ]
