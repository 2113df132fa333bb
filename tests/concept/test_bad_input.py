"""Files of documents that are damaged, gone or of another kind: one sentence, and a way out."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.base.errors import UserError
from pipeline.concept import parquet, text
from pipeline.concept.make import make
from pipeline.concept.pack import read_texts
from pipeline.concept.suffixes import suffixes_of
from pipeline.config.concept_keys import Concept
from pipeline.config.schema import Config
from tests.concept.documents import DIMENSION, config_of, rows_of, vectors_of, write_parquet

KEYS = Concept(dimension=DIMENSION)
COLUMN = "text_sentences_sonar_emb"


def pack_of(folder: Path, *words: str) -> Config:
    """A configuration whose pack is made of three documents of a Parquet file."""
    write_parquet(folder / "source/split=train/0.parquet", rows_of(vectors_of([3, 2, 4])))
    places = (f"data.path={folder / 'pack'}", f"data.dir={folder / 'source'}")
    return config_of("concept.source=parquet", *places, *words)


@pytest.mark.parametrize("suffix", [".npz", ".json"])
def test_a_normaliser_that_was_deleted_is_made_again(suffix: str, tmp_path: Path) -> None:
    config = pack_of(tmp_path)
    before = make(config).normaliser.sha256
    (tmp_path / "pack" / f"normaliser-quartiles{suffix}").unlink()
    assert make(config).normaliser.sha256 == before


def test_arrays_that_are_gone_or_damaged_cost_the_pack(tmp_path: Path) -> None:
    config = pack_of(tmp_path)
    make(config)
    file = tmp_path / "pack" / "offsets.npy"
    file.write_bytes(b"not an array")
    with pytest.raises(UserError, match=r"offsets.npy is not a readable .*: delete it and run `py"):
        make(config)
    file.unlink()
    with pytest.raises(UserError, match=r"pack .* is damaged \(.*offsets.npy is missing\): delete"):
        make(config)


def test_damaged_texts_are_one_sentence(tmp_path: Path) -> None:
    config = pack_of(tmp_path)
    make(config)
    file = tmp_path / "pack" / "sentences.jsonl"
    file.write_bytes(file.read_bytes()[:20] + bytes(100))
    with pytest.raises(UserError, match=r"sentences.jsonl is damaged .*delete the pack and run"):
        read_texts(tmp_path / "pack", {0, 1})


@pytest.mark.parametrize("vector", [np.full(6, 1e300), np.array([*"abcdef"]), np.ones(6) * 1j])
def test_a_suffix_that_is_not_finite_numbers_is_refused(vector: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "end.npy", vector)
    with pytest.raises(UserError, match=rf"or not finite in float32 \({vector.dtype}\): give an"):
        suffixes_of(Concept(dimension=6, suffix=str(tmp_path / "end.npy")))


@pytest.mark.parametrize(
    ("cell", "problem"),
    [
        ([0.5], "a list of double, not of vectors"),
        ([{"vector": [0.5] * DIMENSION}], "a list of struct<.*>, not of vectors"),
        ([["0.5"] * DIMENSION], "a vector of string, not of numbers"),
        ([[True] * DIMENSION], "a vector of bool, not of numbers"),
        ([[[0.5]] * DIMENSION], "a vector of list<.*>, not of numbers"),
    ],
)
def test_a_column_of_something_else_is_named(cell: list[Any], problem: str, tmp_path: Path) -> None:
    file = tmp_path / "0.parquet"
    pa.parquet.write_table(pa.table({"text_sentences": [["A."]], COLUMN: [cell]}), file)
    with pytest.raises(UserError, match=f"row 0, column {COLUMN}: {problem}: name another"):
        list(parquet.documents(file, KEYS))


def test_two_columns_of_a_name_are_refused(tmp_path: Path) -> None:
    texts, vectors = pa.array([["A."]]), pa.array([[[0.5] * DIMENSION]])
    names = ["text_sentences", "text_sentences", COLUMN]
    pa.parquet.write_table(pa.table([texts, texts, vectors], names), tmp_path / "0.parquet")
    with pytest.raises(UserError, match="has 2 columns text_sentences, but text_sentences, text_s"):
        list(parquet.documents(tmp_path / "0.parquet", KEYS))


def test_folders_named_as_files_are_looked_into(tmp_path: Path) -> None:
    inner = tmp_path / "split=train" / "table.parquet" / "part-0.parquet"
    write_parquet(inner, rows_of(vectors_of([2])))
    assert parquet.files(tmp_path, KEYS) == [inner]
    (tmp_path / "book.txt").mkdir()
    (tmp_path / "book.txt" / "1.txt").write_text("One.")
    assert text.files(tmp_path) == [tmp_path / "book.txt" / "1.txt"]


def test_a_text_that_is_gone_is_named_and_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    def encode(lines: list[str]) -> np.ndarray:
        return np.ones((len(lines), text.DIMENSION), np.float32)

    file = tmp_path / "a.txt"
    file.symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"a.txt cannot be read \(No such file or directory\): m"):
        list(text.documents(file, encode))
    (tmp_path / "nowhere").write_text("\ufeffOne. Two.", encoding="utf-8")
    assert [part.sentences for part in text.documents(file, encode)] == [["One.", "Two."]]
