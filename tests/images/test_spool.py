"""Rows of a file that several processes write."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.base.errors import UserError
from pipeline.base.npy import IMAGES_HEADER_BYTES
from pipeline.images.spool import digest, write_rows


@settings(deadline=None, max_examples=30)
@given(st.permutations(range(7)), st.integers(1, 9))
def test_rows_lie_at_their_places_in_whatever_order(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], resolution: int
) -> None:
    path = tmp_path_factory.mktemp("rows") / "rows"
    path.touch()
    shape = (7, resolution, resolution, 3)
    rows = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    for place in order:
        assert write_rows(path, place, rows[place : place + 1]) == digest(rows[place].tobytes())
    assert (np.fromfile(path, np.uint8, offset=IMAGES_HEADER_BYTES).reshape(shape) == rows).all()


def test_a_disk_that_is_full_from_the_start_is_one_sentence() -> None:
    with pytest.raises(UserError, match=r"no space left on the disk of /dev while writing full"):
        write_rows(Path("/dev/full"), 0, np.zeros((1, 8, 8, 3), np.uint8))
