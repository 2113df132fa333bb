"""One evaluation: the scores of images with everything that they depend on."""

from typing import NamedTuple

from pipeline.reporting.records import ClassAccuracy, ImagesEvaluation, SampleAbout, ScoreSheet
from pipeline.reporting.score_sheet import sheet_of
from pipeline.scoring.measure import Accuracy, Work, measure, split, why_no_accuracy
from pipeline.scoring.neighbours import Neighbours
from pipeline.scoring.protocol import notes_on, protocol_of
from pipeline.scoring.scores import all_scores


class Evaluated(NamedTuple):
    """The scores without `seconds`, and the nearest real images of a few of the samples."""

    scores: ImagesEvaluation
    neighbours: Neighbours | None


def evaluate(work: Work) -> Evaluated | None:
    """Score the images of `work` on all its ranks; the result is on rank 0, elsewhere None."""
    # Parts of the bracket
    inputs, extractor, settings = work.inputs, work.extractor, work.config.evaluate
    parts = split(len(inputs.images), len(inputs.real), settings.seed) if inputs.real else None
    why_not = why_no_accuracy(inputs, parts)

    # Features of all images
    measured, accuracy, neighbours = measure(work, parts, not why_not)
    if not work.group.first:
        return None

    # For the reader
    notes = notes_on(inputs, extractor, settings, parts)
    if why_not and inputs.classes:
        notes.append(why_not)

    # The record
    about = SampleAbout.parse_if_any(inputs.how)
    scores = ImagesEvaluation(
        metrics=all_scores(measured, extractor, settings),
        class_accuracy=accuracy_record(accuracy) if accuracy else None,
        neighbours=neighbours.record() if neighbours else None,
        notes=notes,
        protocol=protocol_of(inputs, extractor, settings),
        sheet=sheet_of(about, extractor.name) if about else ScoreSheet(num=len(inputs.images)),
        sample=inputs.how,
    )
    return Evaluated(scores, neighbours)


def accuracy_record(accuracy: Accuracy) -> ClassAccuracy:
    """The class accuracy of the samples with that of real images (`floor`)."""
    shares, num = accuracy.samples.shares(), int(accuracy.samples.counts[0].sum())
    return ClassAccuracy(
        overall=shares.overall,
        per_class=shares.per_class,
        num_images=num,
        floor=accuracy.real.shares(),
    )
