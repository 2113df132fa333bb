"""The score sheet: all that a reader must know of a score before comparing it with another one's.

The protocol says how images were scored. The sheet says which images: how their classes were drawn,
how many there are, which weights made them and by which choice, and whether anything on the way
has seen the features that score. A choice by a distance makes that distance look better than it is.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pipeline.base.json_objects import mapping_at
from pipeline.base.text import number
from pipeline.reporting.records import Evaluation, SampleAbout, ScoreSheet

BEFOREHAND, BY_TRIALS = "in the configuration", "by trials after the training"
UNKNOWN = "not known"
COLUMNS = {
    "sampler": "sampler", "seeds": "seeds", "num": "N", "labels": "labels", "nfe": "NFE",
    "weights": "weights", "average": "average", "chosen": "chosen", "tries": "tries",
    "training": "training saw", "guidance": "guidance saw", "selection": "choice saw",
}  # fmt: skip
TEXT_COLUMNS = {k: v for k, v in COLUMNS.items() if k not in ("nfe", "weights", "average")}
LEGEND = (
    "Labels: sample.classes. Chosen: where the average of the weights and the guidance were, and "
    "tries: how many variants were compared for it. Saw: whether training, guidance or that choice "
    "looked at the features that score."
)


def sheet_of(sample: SampleAbout, extractor: str | None) -> ScoreSheet:
    """The sheet of samples that are scored by the features of `extractor`."""
    keys = mapping_at(sample.config, "sample")
    selected, selection = bool(keys.get("selected")), sample.selection
    # Whether the choice was made by the features that score
    saw = False if sample.config else None
    if selected:
        known = selection and selection.extractor and extractor
        saw = selection.extractor == extractor if selection and known else None
    chosen = (BY_TRIALS if selected else BEFOREHAND) if sample.config else None
    return ScoreSheet(
        labels=labels_of(sample),
        seed=sample.seed,
        num=sample.num,
        nfe=sample.nfe_mean,
        weights=sample.weights_sha256,
        average=average_of(sample),
        chosen=chosen,
        tries=selection.tries if selection else None if selected or not chosen else 0,
        seen_by_training=False if trained_here(sample) else None,
        seen_by_guidance=None if sample.guide_sha256 else False,
        seen_by_choice=saw,
    )


def labels_of(sample: SampleAbout) -> str | None:
    """How the classes were chosen, as in sample.classes; None: not known."""
    training = sample.train.config if sample.train else None
    conditional = mapping_at(training, "model").get("class_conditional")
    return "without classes" if conditional is False else sample.classes


def trained_here(sample: SampleAbout) -> bool:
    """Whether the whole training was this pipeline's, whose losses know no extractor."""
    if (train := sample.train) is None or train.start is not None:
        return False
    return "train" in (keys := train.config or {}) and "imported" not in keys


def average_of(sample: SampleAbout) -> str | None:
    """Which average of the weights was sampled, in words; None: the first, or not known."""
    keys = mapping_at(sample.config, "sample")
    if (width := keys.get("ema_width")) is not None:
        return f"width {width}"
    halflife = keys.get("ema_halflife_images")
    return None if halflife is None else f"half-life of {halflife} images"


def score_sheet(evaluation: Evaluation) -> ScoreSheet:
    """The sheet of a metrics file; of an older file, what its description of the samples says."""
    return evaluation.sheet or sheet_of(evaluation.sample, evaluation.protocol.extractor)


# --- for people ---------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class SheetRow:
    """The sheet of one sampler, over its seeds."""

    # The samples
    sampler: str
    seeds: str
    num: int
    labels: str
    nfe: float | None
    # The weights
    weights: str | None
    average: str | None
    chosen: str
    tries: int | None
    # Whether they saw the features
    training: str
    guidance: str
    selection: str


def answer(value: bool | None) -> str:
    """Yes, no, or that it is not known."""
    return UNKNOWN if value is None else "yes" if value else "no"


def sheet_rows(evaluations: Sequence[Evaluation]) -> list[SheetRow]:
    """One row per sheet, with all seeds that share it."""
    groups: dict[tuple[object, ...], list[tuple[Evaluation, ScoreSheet]]] = {}
    for evaluation in evaluations:
        sheet = score_sheet(evaluation)
        facts = sheet.model_dump(exclude={"seed", "nfe"})
        key = (evaluation.sample.sampler, *facts.values())
        groups.setdefault(key, []).append((evaluation, sheet))
    return [sheet_row(group) for group in groups.values()]


def sheet_row(group: Sequence[tuple[Evaluation, ScoreSheet]]) -> SheetRow:
    """The row of sheets that differ in their seed."""
    (evaluation, sheet), sheets = group[0], [sheet for _, sheet in group]
    evaluations = [sheet.nfe for sheet in sheets if sheet.nfe is not None]
    return SheetRow(
        sampler=evaluation.sample.sampler,
        seeds=", ".join(UNKNOWN if s.seed is None else str(s.seed) for s in sheets),
        num=sheet.num,
        labels=sheet.labels or UNKNOWN,
        nfe=sum(evaluations) / len(evaluations) if evaluations else None,
        weights=sheet.weights and sheet.weights[:8],
        average=sheet.average,
        chosen=sheet.chosen or UNKNOWN,
        tries=sheet.tries,
        training=answer(sheet.seen_by_training),
        guidance=answer(sheet.seen_by_guidance),
        selection=answer(sheet.seen_by_choice),
    )


def comparison(sheets: Iterable[ScoreSheet]) -> str:
    """One line that is equal for scores that can be ranked: the sheets of all seeds of a row."""
    # What must not differ
    sheets = list(sheets)
    sheet = sheets[0]
    seen = {
        "training": sheet.seen_by_training,
        "guidance": sheet.seen_by_guidance,
        "the choice": sheet.seen_by_choice,
    }
    tries = "" if not sheet.tries else f" ({number(sheet.tries)} tries)"
    parts = [
        f"labels {sheet.labels or UNKNOWN}",
        f"{len(sheets)} seed{'s' if len(sheets) > 1 else ''} of {sheet.num:,} samples",
        f"chosen {sheet.chosen or f'when is {UNKNOWN}'}{tries}",
        *(f"{who} saw the features: {answer(value)}" for who, value in seen.items()),
    ]
    return ", ".join(parts)
