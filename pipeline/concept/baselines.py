"""Two predictions of the next sentence that any network must beat, fitted to its own documents."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.concept.held_out import held_out
from pipeline.concept.pack import Documents
from pipeline.concept.pieces import pieces
from pipeline.concept.scores import Ridge, fit_ridge, squared_error
from pipeline.concept.targets import rows_of
from pipeline.config.concept_keys import Concept

MOST_PAIRS, MOST_NUMBERS = 200_000, 10**8  # of a fit: pairs, and vectors times dimension
STRENGTHS = tuple(10.0 ** (power / 2) for power in range(-8, 4))  # tried, times number of pairs
EVERY = 10  # of the training documents one in so many chooses among them


class Fitted(NamedTuple):
    """The two predictors, and how the ridge was fitted."""

    mean: Tensor  # (D,) float32, normalised
    ridge: Ridge
    strength: float  # times the number of pairs
    num_pairs: int
    num_documents: int
    num_pieces: int  # of an epoch of the training


class Pairs(NamedTuple):
    """Normalised vectors (N,D) float32: sentences, and the ones after them."""

    before: Tensor
    after: Tensor


def fit(documents: Documents, keys: Concept) -> Fitted:
    """Both predictors, of the documents that are not held out alone.

    The ridge's strength is the one of least error on a tenth of these documents when fitted to the
    others; then it is fitted to all.
    """
    # A tenth to choose with
    trained = ~held_out(documents.record.num_documents, keys.held_out)
    numbers = np.flatnonzero(trained)
    choosing = np.isin(np.arange(len(trained)), numbers[EVERY - 1 :: EVERY])
    fitting = pairs(documents, trained & ~choosing, keys.max_sentences)
    chosen = pairs(documents, choosing, keys.max_sentences)
    strength = choose(fitting, chosen) if len(chosen.after) and len(fitting.after) else 1.0

    # All of them
    every = pairs(documents, trained, keys.max_sentences)
    num = len(every.after)
    ridge = fit_ridge(every.before, every.after, strength * num)
    num_pieces = len(pieces(documents.offsets, keys.max_sentences, trained).starts)
    return Fitted(every.after.mean(0), ridge, strength, num, len(numbers), num_pieces)


def choose(fitting: Pairs, chosen: Pairs) -> float:
    """The strength, times the number of pairs, with the least error on `chosen`."""
    errors = {}
    for strength in STRENGTHS:
        ridge = fit_ridge(*fitting, strength * len(fitting.after))
        errors[strength] = squared_error(ridge.predict(chosen.before), chosen.after)
    return min(errors, key=lambda strength: errors[strength])


def pairs(documents: Documents, chosen: np.ndarray, most: int) -> Pairs:
    """Pairs of the chosen documents, bool (K,), evenly spaced if there are more than fit."""
    rows = rows_of(pieces(documents.offsets, most, chosen, documents.prompts))
    limit = min(MOST_PAIRS, max(1, MOST_NUMBERS // documents.record.dimension))
    rows = rows[:: max(1, -(-len(rows) // limit))]
    return Pairs(normalised(documents, rows - 1), normalised(documents, rows))


def normalised(documents: Documents, rows: np.ndarray) -> Tensor:
    """Rows of the pack's vectors (n,D) float32 as the network sees them."""
    normaliser = documents.normaliser
    return torch.from_numpy((documents.vectors[rows] - normaliser.center) / normaliser.scale)
