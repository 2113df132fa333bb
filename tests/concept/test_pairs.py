"""Packs of pairs: which sentences of a document are its prompt, and pairs that are none."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import prepare
from pipeline.base.errors import UserError
from pipeline.concept import made, text
from pipeline.concept.make import make
from pipeline.concept.normaliser import fit
from pipeline.concept.pack import Hashes, Manifest, check_arrays, open_documents
from tests.concept.documents import (
    DIMENSION,
    WORDS,
    config_of,
    made_pack,
    make_one_file,
    rows_of,
    vectors_of,
)

PARTS = [[(2, 3), (1, 1)], [(3, 2)]]  # sentences of prompts and targets, file by file


def prompts_and_targets(parts: list[tuple[int, int]], seed: int) -> list[list[np.ndarray]]:
    """The vectors of prompts, and those of targets."""
    return [vectors_of([part[k] for part in parts], seed + k) for k in range(2)]


def pair_rows(parts: list[tuple[int, int]], seed: int) -> list[dict[str, Any]]:
    """Rows of a Parquet file of pairs."""
    rows = zip(*map(rows_of, prompts_and_targets(parts, seed)), strict=True)
    return [{f"prompt{k[4:]}": v for k, v in p.items()} | t for p, t in rows]


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """Words that read two Parquet files of pairs and write a pack."""
    folder = tmp_path / "set/split=train"
    folder.mkdir(parents=True)
    for number, parts in enumerate(PARTS):
        rows = pair_rows(parts, 10 * number)
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{number}.parquet")
    place = [f"data.dir={tmp_path}/set", f"data.path={tmp_path}/pack"]
    return ["concept.source=parquet", "concept.pairs=true", *place]


def test_a_pack_holds_prompts_before_targets(words: list[str], tmp_path: Path) -> None:
    pack = make(config_of(*words))
    wanted = []
    for number, parts in enumerate(PARTS):
        pairs = zip(*prompts_and_targets(parts, 10 * number), strict=True)
        wanted += [x for pair in pairs for x in pair]
    assert np.allclose(pack.vectors, np.concatenate(wanted), atol=0)
    assert np.diff(pack.offsets).tolist() == [5, 2, 5]
    assert pack.prompts is not None and pack.prompts.tolist() == [2, 1, 3]
    lines = (tmp_path / "pack/sentences.jsonl").read_text().splitlines()
    assert lines[:5] == [f'"Sentence {i}."' for i in (0, 1, 0, 1, 2)]
    manifest = Manifest.read(tmp_path / "pack/manifest.json")
    assert manifest.sha256.prompts and manifest.config["pairs"] is True
    assert pack.about["sha256"]["prompts"] == manifest.sha256.prompts
    make(config_of(*words))  # is left alone
    with pytest.raises(UserError, match=r"made by other keys \(concept.pairs\)"):
        make(config_of(*words, "concept.pairs=false"))


def test_the_step_says_how_many_sentences_are_in_prompts(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare.prepare([*WORDS, *words, f"out={tmp_path}/set.json"])
    out = capsys.readouterr().out
    assert "prepare: 12 sentences of 3 documents, 3 pieces" in out
    assert "prepare: 6 of the sentences are in prompts, and never predicted" in out


def test_other_packs_have_nothing_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made_pack(tmp_path, monkeypatch)
    manifest = Manifest.read(tmp_path / "manifest.json").to_json()
    assert {*manifest["sha256"]} == {"vectors", "offsets"} and "pairs" not in manifest["config"]
    assert not {key for key in manifest if "prompt" in key}
    assert not (tmp_path / "prompts.npy").exists()


def test_suffixes_end_prompts_and_documents(words: list[str], tmp_path: Path) -> None:
    """They have no text, and the normaliser is not fitted to them."""
    marks = {"prompt_suffix": 100.0, "suffix": 200.0}
    for name, value in marks.items():
        np.save(tmp_path / f"{name}.npy", np.full(DIMENSION, value))
    given = [f"concept.{name}={tmp_path}/{name}.npy" for name in marks]
    pack = make(config_of(*words, *given))
    assert pack.prompts is not None and pack.prompts.tolist() == [3, 2, 4]
    assert np.diff(pack.offsets).tolist() == [7, 4, 7]
    firsts, ends = pack.offsets[:-1] + pack.prompts - 1, pack.offsets[1:] - 1
    assert (pack.vectors[firsts] == 100).all() and (pack.vectors[ends] == 200).all()
    lines = (tmp_path / "pack/sentences.jsonl").read_text().splitlines()
    wanted = sorted([*firsts.tolist(), *ends.tolist()])
    assert [row for row, line in enumerate(lines) if line == "null"] == wanted
    sentences = np.delete(pack.vectors, [*firsts, *ends], axis=0)
    assert pack.normaliser.sha256 == fit(sentences, "quartiles").sha256
    with pytest.raises(UserError, match=r"made by other keys \(concept.prompt_suffix\)"):
        make(config_of(*words, given[1]))
    with pytest.raises(UserError, match="prompt_suffix=.* is not possible, since documents have"):
        make(config_of(*words, "concept.pairs=false", *given))


def test_an_interrupted_run_goes_on_to_the_same_bytes(words: list[str], tmp_path: Path) -> None:
    make(config_of(*words, f"data.path={tmp_path}/whole"))
    make_one_file(config_of(*words))
    make(config_of(*words))
    parts = [{p.name: p.read_bytes() for p in (tmp_path / x).iterdir()} for x in ("pack", "whole")]
    assert parts[0] == parts[1] and "prompts.npy" in parts[0]


def test_made_pairs_turn_back_in_the_target(tmp_path: Path) -> None:
    forward, turn, back = [], [], []
    for vectors, *_ in made.documents(2):
        forward += [*pairwise(vectors)]
    for vectors, _, prompt in made.pairs(2):
        assert prompt is not None and 1 <= prompt < len(vectors) <= 2 * made.LONGEST_PART
        turn += [*pairwise(vectors[:prompt])]
        back += [*pairwise(vectors[prompt - 1 :])]

    def area(pairs: list[tuple[np.ndarray, np.ndarray]]) -> float:
        return float(np.mean([a[0] * b[1] - a[1] * b[0] for a, b in pairs]))

    assert area(turn) == pytest.approx(area(forward), rel=0.1)
    assert area(back) == pytest.approx(-area(forward), rel=0.1)


# --- text ----------------------------------------------------------------------------------------


def encode(lines: list[str]) -> np.ndarray:
    return np.array([[len(line), 1.0] for line in lines])


def test_a_line_of_its_own_ends_the_prompt(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("One. Two!\n[MODEL]:\nThree\n")
    (pair,) = text.documents(file, encode, pairs=True)
    assert pair.sentences == ["One.", "Two!", "[MODEL]:", "Three"] and pair.prompt == 3
    for content, problem in (
        ("One. Two!", r"has 0 lines \[MODEL\]:, not one, between"),
        ("One.\n[MODEL]:\nTwo.\n[MODEL]:\nThree.", r"has 2 lines \[MODEL\]:, not one"),
        ("[MODEL]:\nThree", r"has no sentence before \[MODEL\]:"),
        ("One.\n[MODEL]:\n", "a target without a sentence: leave this document out"),
    ):
        file.write_text(content)
        with pytest.raises(UserError, match=problem):
            list(text.documents(file, encode, pairs=True))


# --- what is refused -----------------------------------------------------------------------------


def no_prompt(row: dict[str, Any]) -> None:
    row["prompt_sentences"] = row["prompt_sentences_sonar_emb"] = []


def no_target(row: dict[str, Any]) -> None:
    row["text_sentences"] = row["text_sentences_sonar_emb"] = []


def short_prompt(row: dict[str, Any]) -> None:
    row["prompt_sentences_sonar_emb"].pop()


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (no_prompt, "row 1: a prompt without a sentence: leave this document out"),
        (no_target, "row 1: a target without a sentence: leave this document out"),
        (short_prompt, "row 1, column prompt_sentences_sonar_emb: 2 vectors of 3 sentences"),
    ],
)
def test_rows_that_are_no_pairs_are_named(
    damage: Callable[[dict[str, Any]], None], problem: str, words: list[str], tmp_path: Path
) -> None:
    rows = pair_rows([(1, 2), (3, 2)], 0)
    damage(rows[1])
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "set/split=train/0.parquet")
    with pytest.raises(UserError, match=problem):
        make(config_of(*words))


def test_a_missing_column_is_named(words: list[str]) -> None:
    with pytest.raises(UserError, match=r"no column q, but .*: give concept.prompt_vectors_column"):
        make(config_of(*words, "concept.prompt_vectors_column=q"))


@pytest.mark.parametrize(
    ("prompts", "problem"),
    [
        ([2, 1], r"is int64 of shape \(2,\), not int64 \(3,\), a number for each document"),
        ([2.0, 1.0, 3.0], r"is float64 of shape \(3,\), not int64"),
        ([2, 1, 5], "5 sentences of document 2 are its prompt, but it has 5, of which at least"),
        ([2, 3, 9], r"3 sentences of document 1 .* \(2 such documents\)"),
        ([0, 1, 3], "0 sentences of document 0 are its prompt"),
        (None, "prompts.npy is missing"),
    ],
)
def test_arrays_that_fit_no_documents_are_one_sentence(
    prompts: list[float] | None, problem: str, words: list[str], tmp_path: Path
) -> None:
    make(config_of(*words))
    file = tmp_path / "pack/prompts.npy"
    file.unlink()
    if prompts is not None:
        np.save(file, np.array(prompts))
    with pytest.raises(UserError, match=problem):
        open_documents(config_of(*words))


def test_changed_prompts_are_found_at_the_start(words: list[str], tmp_path: Path) -> None:
    record = make(config_of(*words)).record
    np.save(tmp_path / "pack/prompts.npy", np.array([1, 1, 3]))
    with pytest.raises(UserError, match="prompts.npy has changed since it was written"):
        check_arrays(tmp_path / "pack", record)


def test_packs_and_keys_must_agree(words: list[str], pack: Path) -> None:
    make(config_of(*words))
    with pytest.raises(
        UserError, match="holds pairs, but concept.pairs=false: give concept.pairs=t"
    ):
        open_documents(config_of(*words, "concept.pairs=false"))
    with pytest.raises(UserError, match="holds no pairs, but concept.pairs=true: give"):
        open_documents(config_of(f"data.path={pack}", "concept.pairs=true"))
    with pytest.raises(
        UserError, match="a pair of 5 sentences, .* concept.max_sentences=5 instead"
    ):
        open_documents(config_of(*words, "concept.max_sentences=4"))
    assert Hashes(vectors="0", offsets="1").to_json() == {"vectors": "0", "offsets": "1"}
