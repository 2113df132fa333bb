"""The scores of predicted sentences, beside those of two predictions that are easily had."""

from typing import ClassVar

from pipeline.base.json_objects import JsonObject
from pipeline.concept.predictions import PredictAbout


class Measures(JsonObject):
    """Means over all targets, in normalised space; see pipeline/concept/scores.py."""

    squared_error: float  # summed over dimensions, as the loss is
    cosine: float  # in [-1,1]
    retrieval_accuracy: float  # share in [0,1] whose nearest target is their own
    contrastive_accuracy: float | None  # in [0,1], 0.5 by chance; None: of one document alone
    l2_distance: float


class Ridge(JsonObject):
    """How the ridge regression was fitted."""

    strength: float  # times the number of pairs
    num_pairs: int  # of a sentence and the next
    num_documents: int  # of the training


class Example(JsonObject):
    """One target as text."""

    document: int
    place: int  # of the sentence in it, from 0 on
    before: str
    true: str
    nearest: str  # among the scored sentences, to the prediction


class Scores(JsonObject):
    """A scores.json: three predictors of the same held-out sentences."""

    KIND: ClassVar[str] = "a file of scores of sentences"
    REMEDY: ClassVar[str] = "run `python -m pipeline.score` again"

    # What predicts
    network: Measures
    mean: Measures  # of the training documents, for every sentence
    ridge: Measures  # from the sentence before
    # Of what
    num_documents: int
    num_targets: int
    fit: Ridge
    examples: list[Example]  # empty: the pack has no texts
    predictions: PredictAbout
    seconds: float | None = None

    @property
    def predictors(self) -> dict[str, Measures]:
        """The measures by the predictor's name."""
        return {
            "network": self.network,
            "ridge regression": self.ridge,
            "mean vector": self.mean,
        }
