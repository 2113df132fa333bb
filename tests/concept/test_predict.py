"""Predictions of held-out documents: which rows, what the network says, on any number of ranks."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline import predict, train
from pipeline.base.errors import UserError
from pipeline.concept.held_out import held_out
from pipeline.concept.network import LCM
from pipeline.concept.pack import open_documents
from pipeline.concept.predictions import open_predictions
from pipeline.concept.targets import targets
from pipeline.config.concept_keys import Concept
from pipeline.config.model_keys import LCMKeys
from pipeline.training.weights_file import load_weights
from tests.concept.documents import config_of
from tests.concept.test_training import words
from tests.on_ranks import on_ranks

SHARE = "concept.held_out=0.4"


@pytest.fixture(scope="module")
def folder(pack: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a short training, and predictions of one process in batches of two pieces."""
    folder = tmp_path_factory.mktemp("predict")
    train.main(words(pack, folder / "train", SHARE, "train.images=60"))
    predict.main(predict_words(pack, folder, "predict"))
    return folder


def predict_words(pack: Path, folder: Path, out: str, *more: str) -> list[str]:
    weights = folder / "train" / "weights.safetensors"
    keys = [SHARE, "runtime.sample_batch=2", f"weights={weights}"]
    return words(pack, folder / out, *keys, *more)


@given(
    st.lists(st.integers(0, 20), min_size=1, max_size=30),
    st.integers(2, 9),
    st.floats(0, 0.5),
    st.integers(1, 40),
)
def test_targets_are_whole_documents_until_there_are_enough(
    lengths: list[int], most: int, share: float, num: int
) -> None:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    keys = Concept(held_out=share, max_sentences=most, num_scored=num)
    rows, wanted, documents = targets(offsets, keys), [], []
    for document in np.flatnonzero(held_out(len(lengths), share)):
        if len(wanted) >= num:
            break
        within = [i for i in range(lengths[document]) if i % most]  # not the first of a piece
        wanted += [offsets[document] + i for i in within]
        documents += [document] * len(within)
    assert rows.rows.tolist() == wanted and rows.documents.tolist() == documents


def test_it_predicts_what_the_network_says(folder: Path, pack: Path) -> None:
    made = open_predictions(folder / "predict")
    config = config_of(f"data.path={pack}", SHARE)
    documents = open_documents(config)
    assert isinstance(config.model, LCMKeys)
    net = LCM(config.model, documents.normaliser, 8).eval()
    net.load_state_dict(load_weights(folder / "train" / "weights.safetensors"))
    place = 0
    for document in np.flatnonzero(held_out(24, 0.4)):
        first, end = documents.offsets[document : document + 2]
        for start in range(first, end, 8):
            piece = documents.vectors[start : min(start + 8, end)]
            if len(piece) < 2:
                continue
            with torch.no_grad():
                wanted = net(torch.from_numpy(piece[None].copy()))[0][0, :-1]
            rows = slice(place, place + len(piece) - 1)
            assert made.rows[rows].tolist() == list(range(start + 1, start + len(piece)))
            assert np.allclose(made.predicted[rows], wanted.numpy(), atol=1e-5)
            place += len(piece) - 1
    assert place == made.about.num_targets == len(made.rows) > 50
    assert made.about.record.sha256 == documents.record.sha256
    assert made.about.train.images == 60
    assert {path.name for path in (folder / "predict").iterdir()} == {
        *("predicted.npy", "rows.npy", "predict.json", "config.json", "lock")
    }


@pytest.mark.slow
def test_two_ranks_predict_the_same_and_fewer_are_the_first(
    folder: Path,
    pack: Path,
) -> None:
    on_ranks(2, "pipeline.predict", *predict_words(pack, folder, "ranks"))
    predict.main(predict_words(pack, folder, "few", "concept.num_scored=9"))
    one, two, few = (open_predictions(folder / n) for n in ("predict", "ranks", "few"))
    assert two.about.world_size == 2
    assert np.array_equal(one.rows, two.rows)
    assert float(np.abs(one.predicted - two.predicted).max()) < 1e-6
    assert 9 <= len(few.rows) < len(one.rows)
    assert np.allclose(few.predicted, one.predicted[: len(few.rows)], atol=1e-5)


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["concept.held_out=0.3"], "were trained with concept.held_out=0.4, not 0.3"),
        (["concept.max_sentences=9"], "were trained with concept.max_sentences=8, not 9"),
        (["record=x.json"], "x.json is missing"),
        (["weights=x.safetensors"], "weights x.safetensors are missing"),
        (["data.path=nowhere"], "pack nowhere is missing"),
        (["experiment=tiny"], "workload=flow has no sentences to predict"),
    ],
)
def test_what_does_not_fit_is_one_sentence(
    more: list[str],
    sentence: str,
    folder: Path,
    pack: Path,
) -> None:
    given_words = predict_words(pack, folder, "other", *more)
    with pytest.raises(UserError, match=re.escape(sentence)):
        predict.main(["experiment=tiny"] if "experiment=tiny" in more else given_words)
    assert not (folder / "other").exists()


def test_nothing_held_out_and_other_documents_are_refused(
    folder: Path,
    pack: Path,
    tmp_path: Path,
) -> None:
    train.main(words(pack, tmp_path / "train", "train.images=12"))
    with pytest.raises(UserError, match="concept.held_out=0 leaves no document to score"):
        predict.main(predict_words(pack, tmp_path, "out", "concept.held_out=0"))
    from pipeline.concept.make import make

    other = config_of(f"data.path={tmp_path}/pack", "concept.name=other")
    make(other)
    with pytest.raises(UserError, match="were trained on other documents"):
        predict.main(predict_words(tmp_path / "pack", folder, "out", "concept.name=other"))
