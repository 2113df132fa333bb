"""train.start of documents: the weights bring their normaliser, and scores have the pack's."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import train
from pipeline.base.errors import UserError
from pipeline.concept.make import make
from pipeline.concept.normaliser import Normaliser
from pipeline.concept.pack import open_documents
from pipeline.training import checkpoint, start_weights
from pipeline.training.weights_file import load_weights
from tests.concept.documents import TWO_TOWER, WORDS, config_of, made_pack


def test_weights_with_another_normaliser_are_refused(
    pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = "train.images=12"
    train.main([*WORDS, short, f"data.path={pack}", f"out={tmp_path}/first"])
    weights = tmp_path / "first/weights.safetensors"
    saved = checkpoint.checkpoints(next(tmp_path.glob("first/checkpoints/*")))[-1]
    start = f"train.start={weights}"

    # Of the same vectors, in other units
    other, tails = tmp_path / "other", "concept.scale=lcm_tails"
    made_pack(other, monkeypatch, tails)
    for file in (weights, saved):
        given = [f"data.path={other}", tails, f"train.start={file}", f"out={tmp_path}/no"]
        with pytest.raises(UserError, match=f"train.start={file} has another normaliser"):
            train.main([*WORDS, short, *given])

    # Of the same pack
    train.main([*WORDS, short, f"data.path={pack}", start, f"out={tmp_path}/second"])
    assert (tmp_path / "second/weights.safetensors").exists()


def test_only_weights_of_the_same_network_do(pack: Path, tmp_path: Path) -> None:
    """What is dropped in training may differ; the meaning of its noise levels may not."""
    words = [*WORDS, "train.images=12", f"data.path={pack}"]
    train.main([*words, *TWO_TOWER, f"out={tmp_path}/first"])
    start = f"train.start={tmp_path}/first/weights.safetensors"
    for network, sentence in (
        ([], r"is of another network: .*model.kind=lcm_two_tower \(here lcm\)"),
        ([*TWO_TOWER, "model.noise_levels=20"], r"model.noise_levels=10 \(here 20\); give these"),
    ):
        with pytest.raises(UserError, match=sentence):
            train.main([*words, *network, start, f"out={tmp_path}/no"])
    dropped = ["model.context_dropout=0.5", "model.final_dropout=0.1", "model.dropout=0"]
    train.main([*words, *TWO_TOWER, *dropped, start, f"out={tmp_path}/second"])
    assert (tmp_path / "second/weights.safetensors").exists()


@pytest.mark.parametrize("halflife", [0, 48])
def test_pairs_take_the_normaliser_of_the_weights(
    halflife: int, pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of other documents, averaged or not: so they can be fine-tuned."""
    short, average = "train.images=120", f"train.ema_halflife_images={halflife}"
    train.main([*WORDS, short, average, f"data.path={pack}", f"out={tmp_path}/first"])
    start = f"train.start={tmp_path}/first/weights.safetensors"
    words = ["concept.pairs=true", "concept.scale=start", "concept.held_out=0.2"]
    words += ["concept.max_sentences=24", start]
    config = made_pack(tmp_path / "pairs", monkeypatch, *words)
    theirs = load_weights(tmp_path / "first/weights.safetensors")
    ours = open_documents(config).normaliser
    assert np.array_equal(ours.center, theirs["center"])
    assert ours.sha256 == Normaliser.read(pack / "normaliser-quartiles.npz").sha256
    make(config)  # is left alone
    saved = checkpoint.checkpoints(next(tmp_path.glob("first/checkpoints/*")))[-1]
    made_pack(tmp_path / "saved", monkeypatch, *words[:-1], f"train.start={saved}")
    files = [tmp_path / name / "normaliser-start.npz" for name in ("pairs", "saved")]
    assert len({Normaliser.read(file).sha256 for file in files}) == 1

    # Trained from there
    place = [f"data.path={tmp_path}/pairs", f"out={tmp_path}/second"]
    train.main([*WORDS, *words, short, "train.lr=1e-9", *place])
    tuned = load_weights(tmp_path / "second/weights.safetensors")
    assert all(float((tuned[name] - theirs[name]).abs().max()) < 1e-6 for name in theirs)


def test_a_normaliser_that_cannot_be_taken_is_one_sentence(
    pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["concept.scale=start", "concept.max_sentences=8"]
    with pytest.raises(UserError, match=r"weights in train.start=None: give train.start=FILE, or"):
        made_pack(tmp_path / "pairs", monkeypatch, *words)
    assert not (tmp_path / "pairs").exists()  # before the vectors
    train.main([*WORDS, "train.images=12", f"data.path={pack}", f"out={tmp_path}/first"])
    words.append(f"train.start={tmp_path}/first/weights.safetensors")
    with pytest.raises(UserError, match=r"has a normaliser of 6 dimensions, and concept.dim.*=5:"):
        made_pack(tmp_path / "pairs", monkeypatch, *words, "concept.dimension=5")
    made_pack(tmp_path / "pairs", monkeypatch, *words)

    # Weights of other documents, and of none
    file = tmp_path / "pairs/normaliser-start.npz"
    other = {"center": torch.zeros(6), "scale": torch.ones(6)}
    for tensors, sentence in (
        (other, f"{file} is the normaliser of other weights than those in train.start="),
        ({}, "weights.safetensors has no normaliser: give weights of a training with workload=c"),
    ):
        monkeypatch.setattr(start_weights, "read_tensors", lambda path, found=tensors: found)
        with pytest.raises(UserError, match=sentence):
            made_pack(tmp_path / "pairs", monkeypatch, *words)
    made_pack(tmp_path / "pairs", monkeypatch, *words[:-1], f"train.start={'0' * 64}")  # gone


def test_weights_of_an_experiment_that_was_not_trained_say_which() -> None:
    config = config_of("experiment=lcm_finetune_smoke")
    assert config.train.start is not None
    missing = config.train.start.replace("weights", "gone")
    with pytest.raises(UserError, match="is not a file: train experiment=lcm_mse_smoke first, or"):
        start_weights.locate(missing)
