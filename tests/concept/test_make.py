"""Packs of documents: what they hold, resumed after any end, and refused if they are of others."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import prepare
from pipeline.base.errors import UserError
from pipeline.base.progress import Progress
from pipeline.concept import make as making
from pipeline.concept import parquet
from pipeline.concept.make import make
from pipeline.concept.normaliser import fit
from pipeline.concept.pack import Fit, Manifest, Record
from tests.concept.documents import (
    DIMENSION,
    WORDS,
    config_of,
    make_one_file,
    rows_of,
    vectors_of,
    write_parquet,
)

LENGTHS = [[3, 1, 5], [2, 7], [4]]


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """Words that read three Parquet files and write a pack."""
    for number, lengths in enumerate(LENGTHS):
        rows = rows_of(vectors_of(lengths, seed=number))
        write_parquet(tmp_path / "set" / "split=train" / f"{number}.parquet", rows)
    return ["concept.source=parquet", f"data.dir={tmp_path}/set", f"data.path={tmp_path}/pack"]


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_pack_holds_all_documents_in_order(words: list[str], tmp_path: Path) -> None:
    pack = make(config_of(*words))
    wanted = [part for n, lengths in enumerate(LENGTHS) for part in vectors_of(lengths, seed=n)]
    assert np.array_equal(pack.vectors, np.concatenate(wanted))
    assert np.diff(pack.offsets).tolist() == [3, 1, 5, 2, 7, 4]
    assert {*content(tmp_path / "pack")} == {
        *("vectors.npy", "offsets.npy", "sentences.jsonl", "manifest.json"),
        *("normaliser-quartiles.npz", "normaliser-quartiles.json"),
    }
    assert pack.normaliser.sha256 == fit(pack.vectors, "quartiles").sha256


def test_a_suffix_ends_each_document_and_is_not_fitted(words: list[str], tmp_path: Path) -> None:
    end = np.arange(DIMENSION, dtype=np.float32) + 100
    np.save(tmp_path / "end.npy", end[None])
    pack = make(config_of(*words, f"concept.suffix={tmp_path}/end.npy"))
    assert np.diff(pack.offsets).tolist() == [4, 2, 6, 3, 8, 5]
    last = pack.offsets[1:] - 1
    assert (pack.vectors[last] == end).all() and pack.record.has_suffix
    texts = (tmp_path / "pack" / "sentences.jsonl").read_text().splitlines()
    assert len(texts) == len(pack.vectors)
    assert [row for row, text in enumerate(texts) if text == "null"] == last.tolist()
    assert texts[:3] == [f'"Sentence {i}."' for i in range(3)]
    sentences = np.delete(pack.vectors, last, axis=0)
    assert pack.normaliser.sha256 == fit(sentences, "quartiles").sha256
    np.save(tmp_path / "end.npy", end[1:])
    with pytest.raises(UserError, match=r"concept.suffix=.* is of shape \(5,\) or not finite"):
        make(config_of(*words, f"concept.suffix={tmp_path}/end.npy"))


def test_a_whole_pack_is_left_alone_and_a_further_normaliser_made(
    words: list[str], tmp_path: Path
) -> None:
    make(config_of(*words))
    before = content(tmp_path / "pack")
    make(config_of(*words))
    assert content(tmp_path / "pack") == before
    tails = make(config_of(*words, "concept.scale=lcm_tails"))
    assert before.items() < content(tmp_path / "pack").items()
    assert tails.normaliser.sha256 == fit(tails.vectors, "lcm_tails").sha256


def test_other_documents_than_those_of_the_pack_are_told(words: list[str], tmp_path: Path) -> None:
    """As of images: by their listing; a moved copy is the same set."""
    make(config_of(*words))
    shutil.copytree(tmp_path / "set", tmp_path / "moved")
    make(config_of(*words, f"data.dir={tmp_path}/moved"))
    make(config_of(*words, f"data.dir={tmp_path}/gone"))  # nothing to compare with
    write_parquet(tmp_path / "moved/split=train/3.parquet", rows_of(vectors_of([2])))
    with pytest.raises(UserError, match=r"other documents than those in .*4 files instead of 3"):
        make(config_of(*words, f"data.dir={tmp_path}/moved"))
    (tmp_path / "set/split=train/0.parquet").rename(tmp_path / "set/split=train/00.parquet")
    with pytest.raises(UserError, match=r"\(other file names\): give another concept.name"):
        make(config_of(*words))


def test_an_interrupted_run_goes_on_to_the_same_bytes(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(config_of(*words, f"data.path={tmp_path}/whole"))
    read, asked = parquet.documents, []

    def dies(path: Path, keys: Any) -> Iterator[np.ndarray]:
        asked.append(path.name)
        for place, document in enumerate(read(path, keys)):
            if path.name == "1.parquet" and place == 1 and asked.count("1.parquet") == 1:
                raise KeyboardInterrupt
            yield document

    monkeypatch.setattr(parquet, "documents", dies)
    with pytest.raises(KeyboardInterrupt):
        make(config_of(*words))
    journal = tmp_path / "pack" / ".making" / "journal.jsonl"
    journal.write_text(journal.read_text() + '{"file": "split')  # a line that was cut off
    make(config_of(*words))
    assert asked == ["0.parquet", "1.parquet", "1.parquet", "2.parquet"]
    assert content(tmp_path / "pack") == content(tmp_path / "whole")


def test_a_move_that_was_cut_short_goes_on(words: list[str], tmp_path: Path) -> None:
    make(config_of(*words, f"data.path={tmp_path}/whole"))
    making_folder = tmp_path / "pack" / ".making"
    making_folder.mkdir(parents=True)
    for name in ("vectors.npy", "offsets.npy", "sentences.jsonl", "manifest.json"):
        moved = name in ("sentences.jsonl", "vectors.npy")
        place = tmp_path / "pack" if moved else making_folder
        (place / name).write_bytes((tmp_path / "whole" / name).read_bytes())
    make(config_of(*words))
    assert content(tmp_path / "pack") == content(tmp_path / "whole")


def test_a_file_that_has_changed_since_begins_anew(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(making, "move_into_place", lambda *_: exit("killed"))
    with pytest.raises(SystemExit):
        make(config_of(*words))
    monkeypatch.undo()
    (tmp_path / "pack" / ".making" / "manifest.json").unlink()
    first = tmp_path / "set" / "split=train" / "0.parquet"
    write_parquet(first, rows_of(vectors_of([2, 2], seed=9)))
    assert np.diff(make(config_of(*words)).offsets).tolist() == [2, 2, 2, 7, 4]


def test_sentences_of_an_earlier_run_do_not_count_for_the_speed(
    words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_one_file(config_of(*words))
    shown: list[tuple[int, int]] = []
    monkeypatch.setattr(Progress, "show", lambda self, num: shown.append((self.num_before, num)))
    make(config_of(*words, "runtime.progress_seconds=0"))
    assert shown == [(9, 9), (9, 18), (9, 22)]


def test_other_keys_and_damage_are_refused(words: list[str], tmp_path: Path) -> None:
    make(config_of(*words))
    pack = tmp_path / "pack"
    with pytest.raises(UserError, match=r"made by other keys \(concept.source\)"):
        make(config_of(*words, "concept.source=made"))
    with pytest.raises(UserError, match=r"made by other keys \(concept.name\)"):
        make(config_of(*words, "concept.name=other"))
    fitted = Fit.read(pack / "normaliser-quartiles.json")
    fitted.model_copy(update={"vectors": "0" * 64}).write(pack / "normaliser-quartiles.json")
    with pytest.raises(UserError, match="npz is not of the pack beside it"):
        make(config_of(*words))
    np.save(pack / "vectors.npy", np.zeros((3, DIMENSION), np.float32))
    with pytest.raises(UserError, match="pack .* is damaged"):
        make(config_of(*words))


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["data.dir=null"], "data.dir=None is not a folder"),
        (["concept.source=text"], "concept.dimension=6 is not what the encoder"),
        (["data.path=null", "data.pack_dir=null"], "data.pack_dir is not set"),
    ],
)
def test_what_cannot_be_made_is_one_sentence(
    more: list[str], sentence: str, words: list[str]
) -> None:
    with pytest.raises(UserError, match=sentence):
        make(config_of(*words, *more))


def test_the_step_says_what_it_made(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare.prepare([*WORDS, *words, f"out={tmp_path}/data/set.json", "concept.held_out=0.5"])
    out = capsys.readouterr().out
    assert "prepare: 22 sentences of 6 documents, 5 pieces of 2 to 8, 5 documents held" in out
    assert "prepare: 7,168 sentences, padding included, are 5.0 pieces" in out
    record = Record.read(tmp_path / "data" / "set.json")
    assert record == Record.of(Manifest.read(tmp_path / "pack" / "manifest.json"))
    with pytest.raises(UserError, match="workload=flow has no documents to prepare"):
        prepare.prepare(["experiment=tiny"])


def test_the_manifest_says_how_it_was_made(words: list[str], tmp_path: Path) -> None:
    make(config_of(*words))
    manifest = Manifest.read(tmp_path / "pack" / "manifest.json")
    assert manifest.config["split"] == "train" and "max_sentences" not in manifest.config
    assert [*manifest.versions] == ["pyarrow"]
    assert str(tmp_path) not in json.dumps(manifest.to_json())
