"""Parts of JSON objects."""

import pytest

from pipeline.base.json_objects import mapping_at


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        ({"model": {"channels": 32}}, {"channels": 32}),
        ({"model": None}, {}),
        ({"model": "unet"}, {}),
        ({"model": [1, 2]}, {}),
        ({}, {}),
        (None, {}),
    ],
)
def test_a_mapping_within_another_or_none(
    tree: dict[str, object] | None, expected: dict[str, object]
) -> None:
    assert mapping_at(tree, "model") == expected
