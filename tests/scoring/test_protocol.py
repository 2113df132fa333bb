"""Notes on scores: what a reader must know to compare them."""

from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from pipeline.scoring.inputs import Inputs
from pipeline.scoring.protocol import notes_on_classes


@pytest.mark.parametrize(
    ("made", "real", "noted"),
    [
        ([0, 1, 1], [0] * 19 + [1], True),  # balanced samples of a pack that is not
        ([0] * 9 + [1], [0] * 19 + [1], False),  # classes drawn as the pack has them
        ([0, 1, 1], [0, 1], False),
        (None, [0] * 19 + [1], False),
    ],
)
def test_balanced_samples_of_an_uneven_pack_are_noted(
    made: list[int] | None, real: list[int], noted: bool
) -> None:
    labels = None if made is None else np.array(made)
    inputs = SimpleNamespace(labels=labels, real_labels=np.array(real), classes=["a", "b"])
    notes = notes_on_classes(cast(Inputs, inputs))
    assert [("sample.classes=histogram" in note) for note in notes] == [True] * noted
