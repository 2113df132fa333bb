"""Documents in Parquet files as the Large Concept Model's data preparation leaves them.

A row is a document: a list of sentences, and a list of as many vectors; or a pair, whose prompt has
such lists of its own. Files lie below `split=<split>` in the folder of the data set.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.base.errors import UserError
from pipeline.concept.spool import Document, joined
from pipeline.config.concept_keys import Concept
from pipeline.images.sources.find import OF_MANY, check_complete
from pipeline.images.sources.parquet import open_file
from pipeline.images.walk import files_named

# Types of the numbers of a vector, tested
NUMBERS = (pa.types.is_floating, pa.types.is_integer, pa.types.is_decimal)
ROWS = 64  # documents in memory at a time


def files(root: Path, keys: Concept) -> list[Path]:
    """The Parquet files of the split, by name.

    Raises UserError if there are none, or some lack of those that names such as
    train-00000-of-00003.parquet count.
    """
    folder = root / f"split={keys.split}"
    found = files_named(folder, ".parquet")
    if not found:
        splits = sorted(path.name.partition("=")[2] for path in root.glob("split=*"))
        others = f"its splits are {', '.join(splits)}" if splits else "it has no folder split=…"
        raise UserError(
            f"{root} has no Parquet file in {folder.name}: {others}; give concept.split or another "
            "data.dir"
        )
    for parent in sorted({path.parent for path in found}):
        if counted := [p for p in found if p.parent == parent and OF_MANY.match(p.name)]:
            check_complete(counted)
    return found


def documents(path: Path, keys: Concept) -> Iterator[Document]:
    """The documents of a file, in its order.

    Raises UserError that names file, row and column if one is missing, not a list of numbers, of
    another dimension or not finite, or if a document has more or fewer vectors than sentences.
    """
    columns = columns_of(keys)
    names = [*columns.values()]
    with open_file(path) as file:
        there = file.schema_arrow.names
        for key, column in columns.items():
            if (num := there.count(column)) != 1:
                count = f"{num} columns" if num else "no column"
                raise UserError(
                    f"{path} has {count} {column}, but {', '.join(there)}: give concept.{key}"
                )
        row = 0
        for batch in file.iter_batches(ROWS, columns=names):
            for cells in zip(*(batch.column(name) for name in names), strict=True):
                yield document(dict(zip(columns, cells, strict=True)), f"{path}, row {row}", keys)
                row += 1


def columns_of(keys: Concept) -> dict[str, str]:
    """The columns that are read, by the keys that name them."""
    names = ["sentences_column", "vectors_column"]
    if keys.pairs:
        names += ["prompt_sentences_column", "prompt_vectors_column"]
    return {name: getattr(keys, name) for name in names}


def document(cells: Mapping[str, object], where: str, keys: Concept) -> Document:
    """The document of one row, whose cells are given by the keys of their columns, checked.

    `where` names the row.
    """
    target = part(cells["sentences_column"], cells["vectors_column"], where, keys, "")
    if not keys.pairs:
        return target
    prompt = part(
        cells["prompt_sentences_column"], cells["prompt_vectors_column"], where, keys, "prompt_"
    )
    return joined(prompt, target, where)


def part(sentences: Any, vectors: Any, where: str, keys: Concept, kind: str) -> Document:
    """The sentences and vectors of two cells, checked; `kind`: what their keys begin with."""
    names = (getattr(keys, f"{kind}{name}_column") for name in ("sentences", "vectors"))
    here, there = (f"{where}, column {name}" for name in names)
    texts = [str(text) for text in values(sentences, here).to_pylist()]
    num = len(texts)
    rows = values(vectors, there)
    if len(rows) != num:
        raise UserError(
            f"{there}: {len(rows)} vectors of {num} sentences: prepare this document again"
        )
    if not num:
        return Document(np.empty((0, keys.dimension), np.float32), [])
    if not is_list(rows.type):
        raise UserError(f"{there}: a list of {rows.type}, not of vectors: name another column")
    lengths = pc.list_value_length(rows).to_numpy(zero_copy_only=False)
    if (lengths != keys.dimension).any():
        other = int(lengths[lengths != keys.dimension][0])
        raise UserError(
            f"{there}: a vector of {other} numbers, concept.dimension={keys.dimension}: give the "
            "dimension of the vectors"
        )
    numbers = rows.flatten()
    if not any(is_kind(numbers.type) for is_kind in NUMBERS):
        raise UserError(f"{there}: a vector of {numbers.type}, not of numbers: name another column")
    if numbers.null_count:
        raise UserError(f"{there}: a vector holds a null: leave this document out")
    with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused
        array = numbers.to_numpy(zero_copy_only=False).astype(np.float32)
    if not np.isfinite(array).all():
        raise UserError(f"{there}: a number is not finite in float32: leave this document out")
    return Document(array.reshape(num, keys.dimension), [*texts])


def is_list(kind: pa.DataType) -> bool:
    """Whether a type of Arrow is one of lists."""
    types = pa.types
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def values(cell: Any, where: str) -> pa.Array:
    """The list in a cell; raises UserError if it, or a value, is null, or it is not a list."""
    if not isinstance(cell, pa.ListScalar | pa.LargeListScalar | pa.FixedSizeListScalar):
        raise UserError(f"{where}: {cell.type} instead of a list: name the column of lists")
    if not cell.is_valid or cell.values.null_count:
        raise UserError(f"{where}: a null: leave this document out of the data set")
    return cell.values
