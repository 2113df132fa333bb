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
    inputs = SimpleNamespace(labels=labels, real_labels=np.array(real), how={}, classes=["a", "b"])
    notes = notes_on_classes(cast(Inputs, inputs))
    assert [("sample.classes=histogram" in note) for note in notes] == [True] * noted
    if made:  # drawn with equal chances
        inputs.how = {"config": {"sample": {"classes": "random"}}}
        (note,) = notes_on_classes(cast(Inputs, inputs)) if len(real) > 2 else [""]
        assert ("sample.classes=histogram" in note) == (len(real) > 2)


@pytest.mark.parametrize(
    ("chosen", "classes", "noted"),
    [
        ([1], ["a", "b"], "the reference is of all 2"),
        ([1], [], "unless it was made for them"),  # any reference of any images
        ([1, "a"], ["a", "b"], ""),
        ("balanced", ["a", "b"], ""),
    ],
)
def test_samples_of_chosen_classes_are_noted(
    chosen: list[int | str] | str, classes: list[str], noted: str
) -> None:
    how = {"config": {"sample": {"classes": chosen}}}
    inputs = SimpleNamespace(labels=None, real_labels=None, how=how, classes=classes)
    notes = notes_on_classes(cast(Inputs, inputs))
    assert [noted in note for note in notes] == [True] * bool(noted)
