"""Predictions of a folder -> their scores, and those of the mean and of a ridge regression."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.base.errors import UserError
from pipeline.concept import baselines, scores
from pipeline.concept.examples import examples
from pipeline.concept.pack import Documents, pack_folder
from pipeline.concept.predictions import PredictAbout, Predictions
from pipeline.concept.score_record import Fit, Scores
from pipeline.concept.targets import Targets, targets
from pipeline.config.schema import Config
from pipeline.reporting.sentences import Measures


def score(config: Config, documents: Documents, predictions: Predictions) -> Scores:
    """The scores of predictions of sentences of a pack, that `check` has passed."""
    keys = predictions.about.keys
    chosen = targets(documents.offsets, keys, documents.prompts)
    fitted = baselines.fit(documents, keys)

    # Three predictors of the same targets
    target = baselines.normalised(documents, chosen.rows)
    before = baselines.normalised(documents, chosen.rows - 1)
    document = torch.from_numpy(chosen.documents)
    predicted = torch.from_numpy(np.array(predictions.predicted))
    return Scores(
        network=measures(predicted, target, document),
        mean=measures(fitted.mean.expand_as(target), target, document),
        ridge=measures(fitted.ridge.predict(before), target, document),
        num_documents=predictions.about.num_documents,
        num_targets=len(chosen.rows),
        samples=predictions.about.samples,
        fit=Fit(
            strength=fitted.strength,
            num_pairs=fitted.num_pairs,
            num_documents=fitted.num_documents,
            num_pieces=fitted.num_pieces,
        ),
        examples=examples(pack_folder(config), documents, chosen.rows, predicted, target),
        predictions=predictions.about,
    )


def measures(predicted: Tensor, target: Tensor, document: Tensor) -> Measures:
    """All measures of predictions (N,D) of targets (N,D), each in a `document` (N,)."""
    several = bool((document != document[0]).any())
    contrastive = (
        float(scores.contrastive_accuracy(predicted, target, document).double().mean())
        if several
        else None
    )
    return Measures(
        squared_error=scores.squared_error(predicted, target),
        cosine=scores.cosine(predicted, target),
        retrieval_accuracy=scores.retrieval_accuracy(predicted, target),
        contrastive_accuracy=contrastive,
        l2_distance=float(scores.l2_distance(predicted, target).double().mean()),
    )


def check(config: Config, documents: Documents, predictions: Predictions, folder: Path) -> None:
    """Raise UserError unless the predictions in `folder` are of sentences of this pack."""
    about = predictions.about
    same = about.record.sha256 == documents.record.sha256
    if not same or about.normaliser_sha256 != documents.normaliser.sha256:
        raise UserError(
            f"predictions {folder} are of other documents, or of another normaliser, than pack "
            f"{pack_folder(config)} has: give that pack, or predict again"
        )
    if not np.isfinite(predictions.predicted).all():
        raise UserError(
            f"predictions {folder} hold numbers that are not finite: {PredictAbout.REMEDY}"
        )
    chosen: Targets = targets(documents.offsets, about.keys, documents.prompts)
    if not np.array_equal(chosen.rows, predictions.rows):
        raise UserError(
            f"predictions {folder} are not of the rows that their keys choose: "
            f"{PredictAbout.REMEDY}"
        )
