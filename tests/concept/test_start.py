"""train.start of documents: the weights bring their normaliser, and scores have the pack's."""

from pathlib import Path

import pytest

from pipeline import train
from pipeline.base.errors import UserError
from pipeline.training import checkpoint
from tests.concept.documents import TWO_TOWER, WORDS, made_pack


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
