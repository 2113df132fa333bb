"""Documents that training leaves out: which ones, and that no training sees them."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import train
from pipeline.base.errors import UserError
from pipeline.concept.held_out import held_out
from pipeline.concept.pack import Record
from pipeline.concept.pieces import pieces
from pipeline.concept.workload import NextSentence
from pipeline.config.load import load_step
from pipeline.config.stages import stage_keys
from pipeline.training.identity import identity
from tests.concept.documents import config_of
from tests.concept.test_training import documents_of, words

WRITTEN = [4, 8, 18, 20, 53]  # of 60 with a share of 0.1: they must never change
SHARE = st.floats(0, 0.5)


@given(st.integers(1, 200), st.integers(0, 100), SHARE, SHARE)
def test_which_ones_follows_from_their_number_alone(
    num: int, more: int, share: float, other: float
) -> None:
    chosen = held_out(num, share)
    assert np.array_equal(held_out(num + more, share)[:num], chosen)
    assert not (held_out(num, min(share, other)) & ~held_out(num, max(share, other))).any()


def test_the_share_is_that_of_many_documents_and_stays_what_it_was() -> None:
    assert held_out(10_000, 0.1).mean() == pytest.approx(0.1, abs=0.01)
    assert not held_out(10_000, 0.0).any()
    assert np.flatnonzero(held_out(60, 0.1)).tolist() == WRITTEN


@given(st.lists(st.integers(0, 20), min_size=1, max_size=12), st.integers(2, 9), SHARE)
def test_pieces_of_the_chosen_are_those_of_all_without_the_others(
    lengths: list[int], most: int, share: float
) -> None:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    chosen = held_out(len(lengths), share)
    every = set(zip(*pieces(offsets, most), strict=True))
    parts = [set(zip(*pieces(offsets, most, part), strict=True)) for part in (chosen, ~chosen)]
    assert parts[0] | parts[1] == every and not parts[0] & parts[1]
    inside = [chosen[np.searchsorted(offsets, s, side="right") - 1] for s, *_ in parts[0]]
    assert all(inside)


@pytest.mark.parametrize("seed", [0, 7])
def test_training_never_sees_them(seed: int) -> None:
    documents = documents_of([5] * 40)
    workload = NextSentence(config_of("concept.held_out=0.3", f"train.seed={seed}"), documents)
    chosen = held_out(40, 0.3)
    assert workload.num_items == (~chosen).sum() < 40
    firsts = {tuple(v) for v in documents.vectors[documents.offsets[:-1][chosen]].tolist()}
    seen = [workload.batch(np.array([p])).vectors[0, 0].tolist() for p in range(80)]
    assert not firsts & {tuple(v) for v in seen}


def test_the_share_names_a_training_unless_it_is_nothing(tmp_path: Path) -> None:
    data = {"vectors": "0", "offsets": "1", "normaliser": "2"}
    plain, some = config_of(), config_of("concept.held_out=0.2")
    assert "held_out" not in stage_keys(plain, "train")["concept"]
    assert identity(plain, data) != identity(some, data)
    assert identity(plain, data) == identity(config_of("concept.num_scored=7"), data)
    for config in (plain, some):  # not that of the experiment beside them
        keys = stage_keys(config, "train")
        again = load_step(["experiment=lcm_mse_smoke", f"config={json.dumps(keys)}"], (), {})[0]
        assert stage_keys(again, "train") == keys


@pytest.mark.parametrize("share", ["0.51", "-0.1", "true"])
def test_other_shares_are_refused(share: str) -> None:
    with pytest.raises(UserError, match="concept.held_out="):
        config_of(f"concept.held_out={share}")


def test_a_record_of_other_documents_is_refused(pack: Path, tmp_path: Path) -> None:
    record = Record.read(pack / "manifest.json")
    record.write(tmp_path / "same.json")
    train.main(words(pack, tmp_path, f"record={tmp_path}/same.json", "train.images=12"))
    hashes = record.sha256.model_copy(update={"vectors": "0" * 64})
    record.model_copy(update={"sha256": hashes}).write(tmp_path / "other.json")
    with pytest.raises(UserError, match="holds other documents than its record"):
        train.main(words(pack, tmp_path, f"record={tmp_path}/other.json"))
