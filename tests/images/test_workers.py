"""What a worker process does with what it cannot read."""

from pathlib import Path

import numpy as np

from pipeline.images.sources.base import Item, Span
from pipeline.images.workers import PackFormat, decode_items


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
