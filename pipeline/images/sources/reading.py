"""Reads the bytes of images, wherever they are, before a process decodes them."""

from collections.abc import Iterator, Sequence

import numpy as np

from pipeline.images.sources.base import Item, Member, Row, Span, Where
from pipeline.images.sources.zips import read_member


def read_all(items: Sequence[Item]) -> list[bytes | np.ndarray | OSError]:
    """For each item the bytes of its file, its pixels, or why its file cannot be read.

    Raises UserError for a Parquet file that is damaged or missing.
    """
    # Rows read together
    contents: list[bytes | np.ndarray | OSError] = []
    for run in runs([item.where for item in items]):
        if isinstance(run[0], Row):
            from pipeline.images.sources.parquet import read_rows

            contents += read_rows([where for where in run if isinstance(where, Row)])
        else:
            contents.append(read_one(run[0]))
    return contents


def read_one(where: Span | Member | bytes | np.ndarray) -> bytes | np.ndarray | OSError:
    """The bytes or pixels of an image that is in no table, or why they cannot be read."""
    if isinstance(where, Member):
        return read_member(where)
    return read_span(where) if isinstance(where, Span) else where


def runs(places: Sequence[Where]) -> Iterator[list[Where]]:
    """Consecutive rows of a row group together, everything else by itself."""
    # Neighbours join up
    run: list[Where] = []
    for place in places:
        if run and not follows(run[-1], place):
            yield run
            run = []
        run.append(place)
    if run:
        yield run


def follows(before: Where, after: Where) -> bool:
    """Whether `after` is the next row of the same row group."""
    if not isinstance(before, Row) or not isinstance(after, Row):
        return False
    return after == Row(before.path, before.group, before.row + 1)


def read_span(span: Span) -> bytes | OSError:
    """The bytes of a span, or why they cannot be read: a file that is gone or too short."""
    # One open per image
    try:
        with open(span.path, "rb", buffering=0) as stream:  # noqa: PTH123, pathlib takes longer
            stream.seek(span.offset)
            data = stream.read(span.size)
    except OSError as error:
        return error
    # Cut short
    if span.size >= 0 and len(data) != span.size:
        return OSError("the file ends within the image")
    return data
