"""Rows of scores: of each set of samples, and over the seeds of a sampler."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.base.text import number
from pipeline.config.samplers import family
from pipeline.reporting.records import Bracket, Evaluation, Score


def protocol_texts(evaluations: Sequence[Evaluation]) -> list[str]:
    """The protocol of each evaluation as one line of text."""
    return [evaluation.protocol_text for evaluation in evaluations]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One metric of one set of samples."""

    # The metric
    name: str
    label: str  # of the metric, for people
    # Its value
    value: float
    std: float | None
    better: str  # lower or higher
    num_images: int
    # For comparison
    real: float | None  # the value of other real images
    near: float | None  # the value of as many samples
    real_num: int | None
    bracket: Bracket | None
    # The samples
    sampler: str
    family: str  # of samplers that differ in their number of steps
    seed: int
    nfe_mean: float
    # Speed
    images_per_s: float | None
    seconds: float
    # How it was computed
    protocol: int | None  # its number below the table; None: there is only one

    @property
    def floor(self) -> float | None:
        """The distance of other real images."""
        return self.bracket.floor if self.bracket else None

    @property
    def at(self) -> float | None:
        """The value of the samples at the number of images of the bracket, or of `real`."""
        return self.bracket.value if self.bracket else self.near

    @property
    def ceiling(self) -> float | None:
        """The distance of uniform noise."""
        return self.bracket.ceiling if self.bracket else None

    @property
    def num_bracket(self) -> int | None:
        """Number of images on each side of the bracket, or of `real`."""
        return self.bracket.num_images if self.bracket else self.real_num


@dataclass(frozen=True, kw_only=True)
class SeedsRow(Row):
    """Rows that differ in their seed alone: everything else is as in the first of them."""

    # All seeds
    seeds: str
    values: str  # of each seed
    # Over the seeds
    mean: float
    min: float
    max: float


def table_rows(evaluations: Sequence[Evaluation]) -> list[Row]:
    """One row per metric and set of samples, grouped by metric."""
    # Numbers of the protocols
    rows = []
    distinct = list(dict.fromkeys(protocol_texts(evaluations)))
    for evaluation in evaluations:
        place = distinct.index(evaluation.protocol_text) + 1 if len(distinct) > 1 else None
        scores = evaluation.metrics + accuracy_scores(evaluation)
        rows += [score_row(score, evaluation, place) for score in scores]
    # grouped by metric, in the order of the first evaluation
    order = list(dict.fromkeys(row.name for row in rows))
    return sorted(rows, key=lambda row: order.index(row.name))


def score_row(score: Score, evaluation: Evaluation, protocol: int | None) -> Row:
    """The row of one metric; `protocol` is its number."""
    # Metric and samples
    sample = evaluation.sample
    return Row(
        name=score.name,
        label=score.label,
        value=score.value,
        std=score.std,
        better=score.better,
        num_images=score.num_images,
        real=score.real,
        near=score.near,
        real_num=score.real_num,
        bracket=score.bracket,
        sampler=sample.sampler,
        family=family(sample.to_json()),
        seed=sample.seed,
        nfe_mean=sample.nfe_mean,
        images_per_s=sample.images_per_s,
        seconds=sample.seconds,
        protocol=protocol,
    )


def accuracy_scores(evaluation: Evaluation) -> list[Score]:
    """The class accuracy as a metric, if there is one; `real` is that of real images."""
    # Without labels, none
    shares = evaluation.class_accuracy
    if not shares:
        return []

    # As any other metric
    return [
        Score(
            name="class_accuracy",
            label="Class accuracy",
            value=shares.overall,
            num_images=evaluation.sample.num,
            better="higher",
            real=shares.floor.overall,
        )
    ]


def frechet_rows(rows: Sequence[Row]) -> list[Row]:
    """The rows that are FID, or the Fréchet distance in other features."""
    return [row for row in rows if is_frechet(row)]


def is_frechet(row: Row) -> bool:
    """Whether the metric is a Fréchet distance, whatever the features."""
    return row.name.startswith(("fid", "frechet"))


def comparable(row: Row) -> tuple[object, ...]:
    """Equal for rows whose values can be compared: features, number of samples and protocol."""
    return row.name, row.num_images, row.protocol


def seed_rows(rows: Sequence[Row]) -> list[SeedsRow]:
    """FID over seeds: one row per sampler, from `frechet_rows`."""
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        key = (row.sampler, *comparable(row))
        groups.setdefault(key, []).append(row)
    return [over_seeds(group) for group in groups.values()]


def best_pairs(evaluations: Sequence[Evaluation]) -> list[str]:
    """A sentence on the best of several Fréchet distances that can be compared, which is lower
    than another sampling of its kind would give.
    """
    sentences = []
    rows = frechet_rows(table_rows(evaluations))
    for kind in dict.fromkeys(map(comparable, rows)):
        pairs = [row for row in rows if comparable(row) == kind]
        best = min(pairs, key=lambda row: row.value)
        if len(pairs) > 1:
            alike = [row.value for row in pairs if row.sampler == best.sampler]
            mean, seeds = float(np.mean(alike)), "seeds" if len(alike) > 1 else "seed"
            sentences.append(
                f"{best.label}: {number(best.value)} is the best of {len(pairs)} pairs of sampler "
                f"and seed ({best.sampler}, seed {best.seed}); the mean of that sampler over "
                f"{len(alike)} {seeds} is {number(mean)}"
            )
    return sentences


def seeds_title(rows: Sequence[Row]) -> str:
    """Heading of `seed_rows`: FID is the name in the features of its own network alone."""
    named = all(row.name == "fid" for row in rows)
    return f"{'FID' if named else 'Fréchet distance'} over seeds"


def over_seeds(group: Sequence[Row]) -> SeedsRow:
    """Mean, extremes and standard deviation of the values of rows that differ in their seed."""
    # Means over the seeds
    values = [row.value for row in group]
    merged = {
        "std": float(np.std(values, ddof=1)) if len(values) > 1 else None,
        "nfe_mean": float(np.mean([row.nfe_mean for row in group])),
    }

    # The first, with those
    return SeedsRow(
        **vars(group[0]) | merged,
        seeds=", ".join(str(row.seed) for row in group),
        values=", ".join(map(number, values)),
        mean=float(np.mean(values)),
        min=min(values),
        max=max(values),
    )
