"""How many workers there are, and what one does with what it cannot read."""

import os
from pathlib import Path

import numpy as np
import pytest

from pipeline.images.sources.base import Item, Span
from pipeline.images.workers import PackFormat, decode_items, num_workers
from tests.conftest import resolved


def test_files_that_cannot_be_read_are_problems_without_their_path(tmp_path: Path) -> None:
    items = [
        Item("a/gone", Span(str(tmp_path / "gone"))),
        Item("a/pixels", np.full((9, 9, 3), 7, np.uint8)),
        Item("a/bytes", b"no image"),
    ]
    shrunk = decode_items(items, PackFormat("box", 8))
    assert shrunk.problems == {
        0: "FileNotFoundError: No such file or directory",
        2: "no image of a known format",
    }
    assert (shrunk.pixels[1] == 7).all() and not shrunk.pixels[[0, 2]].any()


@pytest.mark.parametrize(
    ("cores", "wanted", "num_images", "expected"),
    [(64, 16, None, 16), (64, 99, None, 64), (2, 16, None, 2), (64, 16, 64 * 5, 5), (64, 16, 9, 1)],
)
def test_as_many_workers_as_wanted_if_there_are_cores_and_batches(
    cores: int, wanted: int, num_images: int | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    config = resolved("experiment=tiny", f"runtime.workers={wanted}")
    assert num_workers(config, num_images, 64) == expected
