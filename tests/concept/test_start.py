"""train.start of documents: the weights bring their normaliser, and scores have the pack's."""

from pathlib import Path

import pytest

from pipeline import train
from pipeline.base.errors import UserError
from pipeline.training import checkpoint
from tests.concept.documents import WORDS, made_pack


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
