"""Predicted sentences beside texts: what stood before, the true one, and the nearest real one."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.concept.pack import Documents, read_texts
from pipeline.concept.score_record import Example

EXAMPLES = 5


def examples(
    folder: Path, documents: Documents, rows: np.ndarray, predicted: Tensor, target: Tensor
) -> list[Example]:
    """A few targets, evenly spaced, as texts of the pack in `folder`; none if it has no texts.

    `rows` (N,) int64 of the targets in the pack; `predicted`, `target` (N,D). A suffix has no text
    and is left out.
    """
    # Rows that are shown
    candidates = np.arange(len(rows))
    if documents.record.has_suffix:
        candidates = np.flatnonzero(~np.isin(rows, documents.offsets[1:] - 1))
    if not len(candidates):
        return []
    places = np.linspace(0, len(candidates) - 1, EXAMPLES + 2)[1:-1].round().astype(int)
    chosen = np.unique(candidates[places])
    distances = torch.cdist(predicted[chosen], target[candidates])
    nearest = rows[candidates[distances.argmin(1).numpy()]]

    # Their texts
    true = rows[chosen]
    texts = read_texts(folder, {*true.tolist(), *(true - 1).tolist(), *nearest.tolist()})
    if texts is None:
        return []
    words = {row: text or "(end of the prompt)" for row, text in texts.items()}
    numbers = np.searchsorted(documents.offsets, true, side="right") - 1
    return [
        Example(
            document=int(number),
            place=int(row - documents.offsets[number]),
            before=words[row - 1],
            true=words[row],
            nearest=words[near],
        )
        for row, number, near in zip(true.tolist(), numbers, nearest.tolist(), strict=True)
    ]
