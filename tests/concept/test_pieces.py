"""Documents in pieces; batches as the Large Concept Model's trainer makes them."""

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.concept.pieces import SHORTEST, greedy_batches, pieces
from tests.concept import oracle


@given(st.lists(st.integers(0, 40), max_size=12), st.integers(2, 9))
def test_pieces_cover_each_document_in_order_without_overlap(lengths: list[int], most: int) -> None:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    ends = offsets[1:]
    alone = {end - 1 for n, end in zip(lengths, ends, strict=True) if n % most == 1}
    found = pieces(offsets, most)
    taken = [s + i for s, n, _ in zip(*found, strict=True) for i in range(n)]
    assert taken == [row for row in range(sum(lengths)) if row not in alone]
    assert all(SHORTEST <= n <= most for n in found.lengths)
    for start, n, _ in zip(*found, strict=True):  # within one document
        assert not any(start < end <= start + n - 1 for end in ends)
    assert sum(n < most for n in found.lengths) <= sum(n % most > 1 for n in lengths)


def test_batches_have_the_lengths_of_theirs() -> None:
    wanted = oracle.arrays("batching/")
    lengths = wanted.pop("lengths")
    ours = greedy_batches(lengths, 24)
    assert [sorted(lengths[b]) for b in ours] == [sorted(lengths[b]) for b in wanted.values()]


@given(st.lists(st.integers(1, 30), max_size=30), st.integers(1, 40))
def test_batches_are_full_and_hold_all_that_fits(lengths: list[int], most: int) -> None:
    array = np.array(lengths, np.int64)
    batches = greedy_batches(array, most)
    rows = [row for batch in batches for row in batch]
    assert sorted(rows) == [row for row, n in enumerate(lengths) if n <= most]
    assert all(len(b) * array[b].max() <= most for b in batches)
    for batch, following in pairwise(batches):
        assert (len(batch) + 1) * array[following].min() > most
