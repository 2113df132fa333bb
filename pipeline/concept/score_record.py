"""The scores of predicted sentences, beside those of two predictions that are easily had."""

from pipeline.base.json_objects import JsonObject
from pipeline.concept.predictions import PredictAbout
from pipeline.reporting.sentences import SentenceScores


class Fit(JsonObject):
    """How the baselines were fitted."""

    strength: float  # times the number of pairs
    num_pairs: int  # of a sentence and the next
    num_documents: int  # of the training
    num_pieces: int  # of an epoch of it


class Example(JsonObject):
    """One target as text."""

    document: int
    place: int  # of the sentence in it, from 0 on
    before: str
    true: str
    nearest: str  # among the scored sentences, to the prediction


class Scores(SentenceScores):
    """A scores.json: three predictors of the same held-out sentences, and how they were made."""

    fit: Fit
    examples: list[Example]  # empty: the pack has no texts
    predictions: PredictAbout
    seconds: float | None = None
