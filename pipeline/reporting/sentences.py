"""Scores of predicted sentences as a report shows them."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from pipeline.base.errors import UserError
from pipeline.base.json_objects import JsonObject
from pipeline.base.text import number

FILE = "scores.json"  # in the folder `metrics` of a run on documents

OF_SAMPLES = (
    "The network's predictions are samples of what could follow: on average a sample is farther "
    "from the true sentence than the mean of all that could is, so compare squared errors of "
    "samples only with those of samples."
)


class Measures(JsonObject):
    """Means over all targets, in normalised space; see pipeline/concept/scores.py."""

    squared_error: float  # summed over dimensions
    cosine: float  # in [-1,1]
    retrieval_accuracy: float  # share in [0,1] whose nearest target is their own
    contrastive_accuracy: float | None  # in [0,1], 0.5 by chance; None: of one document alone
    l2_distance: float


class SentenceScores(JsonObject):
    """The part of a scores.json that every page shows: predictors of the same sentences."""

    KIND: ClassVar[str] = "a file of scores of sentences"
    REMEDY: ClassVar[str] = "run `python -m pipeline.score` again"

    # What predicts
    network: Measures
    mean: Measures  # of the training documents, for every sentence
    ridge: Measures  # from the sentence before
    # Of what
    num_documents: int
    num_targets: int
    samples: bool = False  # whether the network's predictions are samples, and not means

    @property
    def predictors(self) -> dict[str, Measures]:
        """The measures by the predictor's name."""
        return {
            "network": self.network,
            "ridge regression": self.ridge,
            "mean vector": self.mean,
        }


@dataclass(frozen=True)
class PredictorRow:
    """A row of the table of predictors."""

    predictor: str
    squared_error: float
    share: float  # of the squared error of the mean
    l2_distance: float
    cosine: float
    retrieval_accuracy: float
    contrastive_accuracy: float | None


COLUMNS = {
    "predictor": "predictor",
    "squared_error": "squared error ↓",
    "share": "… of the mean's ↓",
    "l2_distance": "distance ↓",
    "cosine": "cosine ↑",
    "retrieval_accuracy": "retrieval ↑",
    "contrastive_accuracy": "contrastive ↑",
}
LEGEND = (
    "↓ lower is better, ↑ higher is better; all in normalised space. Squared error: summed over "
    "dimensions. Distance: Euclidean. Retrieval: share of predictions that are "
    "nearer to their own sentence than to every other scored one. Contrastive: share of the other "
    "documents' sentences that are farther from a prediction than its own; 0.5 by chance."
)


def predictor_rows(scores: SentenceScores) -> list[PredictorRow]:
    """The table: a row per predictor."""
    mean = scores.mean.squared_error
    return [
        PredictorRow(predictor=name, share=row.squared_error / mean, **row.model_dump())
        for name, row in scores.predictors.items()
    ]


def in_words(scores: SentenceScores) -> list[str]:
    """Sentences: the error beside those of the baselines, retrieval, and a warning of samples."""
    network, ridge, mean = scores.network, scores.ridge, scores.mean
    return [
        f"Squared error {number(network.squared_error)} per sentence: "
        f"{beside(network.squared_error, ridge.squared_error)} the ridge regression from the "
        f"sentence before ({number(ridge.squared_error)}) and "
        f"{beside(network.squared_error, mean.squared_error)} the mean vector "
        f"({number(mean.squared_error)}), on {scores.num_targets:,} sentences of "
        f"{scores.num_documents:,} held-out documents.",
        f"{network.retrieval_accuracy:.1%} of the predictions are nearer to their own sentence "
        f"than to any other of these (ridge regression: {ridge.retrieval_accuracy:.1%}).",
        *([OF_SAMPLES] if scores.samples else []),
    ]


def beside(value: float, other: float) -> str:
    """By how much a value lies below or above another, in words."""
    share = (value - other) / other
    return f"{abs(share):.1%} {'below' if share < 0 else 'above'}"


def read_of_run(metrics: Path) -> SentenceScores | None:
    """The scores in the folder `metrics` of a run; None if there are none of sentences."""
    try:
        return SentenceScores.read(metrics / FILE)
    except UserError:
        return None
