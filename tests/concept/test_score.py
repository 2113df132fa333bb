"""Scores of predictions: three predictors of the same sentences, none of which saw them."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import predict, score, train
from pipeline.base.errors import UserError
from pipeline.base.files import read_json, write_json
from pipeline.base.npy import save_npy
from pipeline.concept import baselines
from pipeline.concept.baselines import normalised
from pipeline.concept.held_out import held_out
from pipeline.concept.pack import Documents, open_documents
from pipeline.concept.score_record import Scores
from pipeline.concept.scores import fit_ridge, squared_error
from pipeline.concept.targets import targets
from pipeline.config.concept_keys import Concept
from tests.concept.documents import config_of
from tests.concept.test_training import documents_of, words

SHARE = "concept.held_out=0.4"
KEYS = Concept(dimension=6, held_out=0.4, max_sentences=8)


@pytest.fixture(scope="module")
def folder(pack: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training, its predictions and their scores."""
    folder = tmp_path_factory.mktemp("score")
    train.main(words(pack, folder / "train", SHARE))
    weights = f"weights={folder}/train/weights.safetensors"
    predict.main(words(pack, folder / "predict", SHARE, weights))
    score.main(score_words(pack, folder))
    return folder


def score_words(pack: Path, folder: Path, *more: str) -> list[str]:
    out = folder / "metrics" / "scores.json"
    return words(pack, out, f"predictions={folder}/predict", *more)


def opened(pack: Path) -> Documents:
    return open_documents(config_of(f"data.path={pack}"))


def test_three_predictors_of_the_same_sentences(folder: Path, pack: Path) -> None:
    documents = opened(pack)
    result, chosen = (
        Scores.read(folder / "metrics" / "scores.json"),
        targets(documents.offsets, KEYS),
    )
    rows, target = chosen.rows, normalised(documents, chosen.rows)
    assert (result.num_targets, result.num_documents) == (len(rows), held_out(24, 0.4).sum())
    # the mean, by hand, of all sentences of the training that follow another
    trained = ~held_out(24, 0.4)
    after = [
        row
        for k in np.flatnonzero(trained)
        for row in range(documents.offsets[k], documents.offsets[k + 1])
        if (row - documents.offsets[k]) % 8
    ]
    assert result.fit.num_pairs == len(after) and result.fit.num_documents == trained.sum()
    train_after, before = normalised(documents, np.array(after)), np.array(after) - 1
    mean = train_after.mean(0)
    assert result.mean.squared_error == pytest.approx(squared_error(mean.expand_as(target), target))
    # the ridge, by its strength
    strength = result.fit.strength * len(after)
    ridge = fit_ridge(normalised(documents, before), train_after, strength)
    by_hand = squared_error(ridge.predict(normalised(documents, rows - 1)), target)
    assert result.ridge.squared_error == pytest.approx(by_hand, rel=1e-6)
    # the made documents turn linearly
    assert result.ridge.squared_error < 0.6 * result.mean.squared_error
    predicted = torch.from_numpy(np.load(folder / "predict" / "predicted.npy"))
    assert result.network.squared_error == pytest.approx(squared_error(predicted, target))
    assert result.network.squared_error < result.mean.squared_error
    assert result.ridge.retrieval_accuracy > 0.1 > result.mean.retrieval_accuracy
    assert 0.4 < result.mean.contrastive_accuracy < 0.6 < result.ridge.contrastive_accuracy
    assert result.predictions.train.images == 480


def test_baselines_see_no_held_out_document(pack: Path) -> None:
    documents = opened(pack)
    fitted = baselines.fit(documents, KEYS)
    vectors = np.array(documents.vectors)
    for k in np.flatnonzero(held_out(24, 0.4)):
        vectors[documents.offsets[k] : documents.offsets[k + 1]] += 100
    other = baselines.fit(
        Documents(vectors, documents.offsets, documents.record, documents.normaliser), KEYS
    )
    assert torch.equal(other.mean, fitted.mean)
    assert torch.equal(other.ridge.matrix, fitted.ridge.matrix)


def test_the_strength_is_the_best_on_a_tenth() -> None:
    """Vectors that nothing predicts want the strongest; those that repeat the weakest."""
    noise = documents_of([6] * 60)
    repeated = np.repeat(noise.vectors[::6], 6, axis=0)
    same = Documents(repeated, noise.offsets, noise.record, noise.normaliser)
    assert baselines.fit(noise, KEYS).strength == max(baselines.STRENGTHS)
    fitted = baselines.fit(same, KEYS)
    assert fitted.strength == min(baselines.STRENGTHS)
    assert torch.allclose(fitted.ridge.matrix, torch.eye(6).double(), atol=1e-2)


def test_pairs_are_thinned_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    documents = documents_of([5] * 40)
    every = baselines.pairs(documents, np.ones(40, bool), 8)
    monkeypatch.setattr(baselines, "MOST_PAIRS", 50)
    some = baselines.pairs(documents, np.ones(40, bool), 8)
    assert len(every.after) == 160 and len(some.after) == 40
    assert torch.equal(some.after, every.after[::4]) and torch.equal(some.before, every.before[::4])


def test_damage_and_other_documents_are_one_sentence(
    folder: Path, pack: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "predict"
    copy.mkdir()
    for file in (folder / "predict").iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    save_npy(copy / "rows.npy", np.load(copy / "rows.npy") + 1)
    with pytest.raises(UserError, match="are not of the rows that their keys choose"):
        score.main(score_words(pack, tmp_path))
    save_npy(copy / "predicted.npy", np.load(copy / "predicted.npy")[1:])
    with pytest.raises(UserError, match="are damaged"):
        score.main(score_words(pack, tmp_path))
    about = read_json(copy / "predict.json")
    write_json(copy / "predict.json", about | {"normaliser_sha256": "0"})
    (copy / "predicted.npy").write_bytes((folder / "predict" / "predicted.npy").read_bytes())
    with pytest.raises(UserError, match="are of other documents, or of another normaliser"):
        score.main(score_words(pack, tmp_path))
    with pytest.raises(UserError, match=re.escape("predict.json is missing")):
        score.main(score_words(pack, tmp_path / "nowhere"))
    with pytest.raises(UserError, match="x.json is missing"):
        score.main(score_words(pack, folder, "record=x.json"))
