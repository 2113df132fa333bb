"""The sentences that are predicted and scored: those of held-out documents, except each first.

Of pairs those of the targets alone.
"""

from typing import NamedTuple

import numpy as np

from pipeline.concept.held_out import held_out
from pipeline.concept.pieces import Pieces, pieces
from pipeline.config.concept_keys import Concept


class Targets(NamedTuple):
    """Pieces of held-out documents, and what of them is predicted, in the same order.

    `rows` (N,) int64: of each target among the vectors of the pack. `documents` (N,) int64: the
    number of its document.
    """

    pieces: Pieces
    rows: np.ndarray
    documents: np.ndarray


def targets(offsets: np.ndarray, keys: Concept, prompts: np.ndarray | None = None) -> Targets:
    """The targets of whole held-out documents, in their order, until `keys.num_scored` is reached.

    `offsets` (K+1,) int64: where each document of the pack begins; `prompts` (K,): of pairs.
    """
    # Targets of each held-out document
    chosen = held_out(len(offsets) - 1, keys.held_out)
    parts = pieces(offsets, keys.max_sentences, chosen, prompts)
    documents = np.searchsorted(offsets, parts.starts, side="right") - 1
    counts = np.bincount(documents, parts.lengths - parts.contexts, len(chosen))

    # Whole documents until the number is reached
    before = np.cumsum(counts) - counts
    kept = before[documents] < keys.num_scored
    parts = parts.part(kept)
    return Targets(
        parts, rows_of(parts), np.repeat(documents[kept], parts.lengths - parts.contexts)
    )


def rows_of(parts: Pieces) -> np.ndarray:
    """The rows (N,) int64 of all sentences of the pieces except the context of each."""
    counts = parts.lengths - parts.contexts
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    rows: np.ndarray = np.repeat(parts.starts + parts.contexts, counts) + within
    return rows
