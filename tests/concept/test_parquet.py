"""The layout of the Large Concept Model's data: what is read, and what is refused by its place."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.base.errors import UserError
from pipeline.concept import parquet
from pipeline.config.concept_keys import Concept
from tests.concept.documents import DIMENSION, rows_of, vectors_of, write_parquet

KEYS = Concept(dimension=DIMENSION)
FLOATS = pa.float32()


@pytest.mark.parametrize(
    "kind",
    [pa.list_(FLOATS, DIMENSION), pa.list_(FLOATS), pa.list_(pa.float64(), DIMENSION)],
)
def test_documents_come_back_in_order(kind: pa.DataType, tmp_path: Path) -> None:
    written = vectors_of([3, 1, 0, 5, 70, 2, 2])
    write_parquet(tmp_path / "split=train" / "0.parquet", rows_of(written), kind)
    (file,) = parquet.files(tmp_path, KEYS)
    read = list(parquet.documents(file, KEYS))
    assert [part.vectors.dtype for part in read] == [np.float32] * 7
    assert all(np.array_equal(a.vectors, b) for a, b in zip(read, written, strict=True))
    assert [len(part.sentences or []) for part in read] == [len(part) for part in written]


def test_files_are_those_of_the_split(tmp_path: Path) -> None:
    for place in ("split=train/b", "split=train/a/c", "split=validation/d"):
        write_parquet(tmp_path / f"{place}.parquet", rows_of(vectors_of([2])))
    names = [str(file.relative_to(tmp_path)) for file in parquet.files(tmp_path, KEYS)]
    assert names == ["split=train/a/c.parquet", "split=train/b.parquet"]
    with pytest.raises(UserError, match="its splits are train, validation; give concept.split"):
        parquet.files(tmp_path, Concept(split="test"))
    with pytest.raises(UserError, match="it has no folder split="):
        parquet.files(tmp_path / "split=train", KEYS)


def test_files_that_are_missing_by_their_names_are_noticed(tmp_path: Path) -> None:
    place = tmp_path / "split=train"
    for number in (0, 2):
        write_parquet(place / f"train-0000{number}-of-00003.parquet", rows_of(vectors_of([2])))
    with pytest.raises(UserError, match="1 of 3 shards are missing .*number 00001"):
        parquet.files(tmp_path, KEYS)
    write_parquet(place / "train-00001-of-00003.parquet", rows_of(vectors_of([2])))
    write_parquet(place / "more.parquet", rows_of(vectors_of([2])))
    assert len(parquet.files(tmp_path, KEYS)) == 4


def null_vector(row: dict[str, Any]) -> None:
    row["text_sentences_sonar_emb"][1] = None


def null_number(row: dict[str, Any]) -> None:
    row["text_sentences_sonar_emb"][0][2] = None


def null_sentence(row: dict[str, Any]) -> None:
    row["text_sentences"][0] = None


def null_document(row: dict[str, Any]) -> None:
    row["text_sentences_sonar_emb"] = None


def infinite(row: dict[str, Any]) -> None:
    row["text_sentences_sonar_emb"][1][0] = float("inf")


def one_vector_less(row: dict[str, Any]) -> None:
    row["text_sentences_sonar_emb"].pop()


def short_vector(row: dict[str, Any]) -> None:
    row["text_sentences_sonar_emb"][1].pop()


@pytest.mark.parametrize(
    ("damage", "column", "problem"),
    [
        (null_vector, "text_sentences_sonar_emb", "a null"),
        (null_number, "text_sentences_sonar_emb", "a vector holds a null"),
        (null_sentence, "text_sentences", "a null"),
        (null_document, "text_sentences_sonar_emb", "a null"),
        (infinite, "text_sentences_sonar_emb", "a number is not finite"),
        (one_vector_less, "text_sentences_sonar_emb", "3 vectors of 4 sentences"),
        (short_vector, "text_sentences_sonar_emb", "a vector of 5 numbers, concept.dimension=6"),
    ],
)
def test_damage_is_named_by_file_row_and_column(
    damage: Callable[[dict[str, Any]], None], column: str, problem: str, tmp_path: Path
) -> None:
    rows = rows_of(vectors_of([2] * 69 + [4, 2]))
    damage(rows[69])
    file = tmp_path / "split=train" / "0.parquet"
    write_parquet(file, rows, pa.list_(FLOATS))
    with pytest.raises(UserError) as error:
        list(parquet.documents(file, KEYS))
    assert str(error.value).startswith(f"{file}, row 69, column {column}: {problem}")


def test_another_column_or_type_is_named(tmp_path: Path) -> None:
    file = tmp_path / "0.parquet"
    write_parquet(file, rows_of(vectors_of([2])))
    with pytest.raises(UserError, match="has no column emb, but text_sentences, text_sentences_s"):
        list(parquet.documents(file, KEYS.model_copy(update={"vectors_column": "emb"})))
    pa.parquet.write_table(pa.table({"text_sentences": ["x"], "emb": [1.5]}), file)
    with pytest.raises(UserError, match="row 0, column text_sentences: string instead of a list"):
        list(parquet.documents(file, KEYS.model_copy(update={"vectors_column": "emb"})))
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(UserError, match="cannot be read as a Parquet file"):
        list(parquet.documents(file, KEYS))
