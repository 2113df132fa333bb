"""Documents cut into the pieces that training takes, one after the other and without overlap."""

from typing import NamedTuple

import numpy as np

SHORTEST = 2  # sentences of a piece: the first one is context alone, so that one has no target


class Pieces(NamedTuple):
    """First rows and lengths, int64 (N,), of pieces of documents.

    `contexts` (N,) int64: sentences before the first that is predicted from them: one, or a prompt.
    """

    starts: np.ndarray
    lengths: np.ndarray
    contexts: np.ndarray

    def part(self, chosen: np.ndarray | slice) -> "Pieces":
        """Some of them."""
        return Pieces(*(values[chosen] for values in self))


def pieces(
    offsets: np.ndarray,
    most: int,
    chosen: np.ndarray | None = None,
    prompts: np.ndarray | None = None,
) -> Pieces:
    """The pieces of at most `most` sentences of documents at offsets (K+1,), in their order.

    Only the last piece of a document may be shorter. Those without a target are left out, and
    documents that are not `chosen`, bool (K,); None: all are. Pairs, whose prompts have the lengths
    `prompts` (K,), are not longer than `most`.
    """
    lengths = np.diff(offsets) if chosen is None else np.where(chosen, np.diff(offsets), 0)
    counts = -(-lengths // most)
    document = np.repeat(np.arange(len(lengths)), counts)
    within = np.arange(len(document)) - np.repeat(np.cumsum(counts) - counts, counts)
    starts = offsets[document] + most * within
    sizes = np.minimum(most, offsets[document + 1] - starts)
    contexts = np.ones_like(starts) if prompts is None else prompts[document]
    kept = sizes >= SHORTEST
    return Pieces(*(values[kept].astype(np.int64) for values in (starts, sizes, contexts)))


def greedy_batches(lengths: np.ndarray, most: int) -> list[np.ndarray]:
    """Rows of batches as the Large Concept Model's trainer makes them, to compare sizes with.

    Sorted by length, each batch takes as many as keep its number times the longest within `most`
    sentences. Longer ones are in none.
    """
    order = np.argsort(lengths, kind="stable")
    batches: list[np.ndarray] = []
    first = 0
    for place, row in enumerate(order):
        if lengths[row] * (place + 1 - first) > most:
            batches.append(order[first:place])
            first = place
        if lengths[row] > most:
            return [batch for batch in batches if len(batch)]
    return [batch for batch in [*batches, order[first:]] if len(batch)]
