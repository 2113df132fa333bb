"""Predictions that are not finite are refused: none would be nearer to another sentence."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import predict, score, train
from pipeline.base.errors import UserError
from pipeline.concept.held_out import held_out
from pipeline.training.weights_file import load_weights, read_about, save_weights
from tests.concept.test_training import words

SHARE = "concept.held_out=0.4"


def test_they_are_not_written_and_not_scored(pack: Path, tmp_path: Path) -> None:
    # A network that fails
    train.main(words(pack, tmp_path / "train", SHARE, "train.images=12"))
    file = tmp_path / "train" / "weights.safetensors"
    weights = load_weights(file)
    bad = {**weights, "output.bias": torch.full_like(weights["output.bias"], torch.inf)}
    save_weights(tmp_path / "bad.safetensors", bad, read_about(file))
    first = np.flatnonzero(held_out(24, 0.4))[0]
    with pytest.raises(UserError, match=f"bad.safetensors .* not finite for document {first} of"):
        predict.main(words(pack, tmp_path / "p", SHARE, f"weights={tmp_path}/bad.safetensors"))
    assert not (tmp_path / "p" / "predict.json").exists()

    # Predictions that were damaged
    predict.main(words(pack, tmp_path / "p", SHARE, f"weights={file}"))
    predicted = np.load(tmp_path / "p" / "predicted.npy", mmap_mode="r+")
    predicted[3, 1] = np.nan
    predicted.flush()
    with pytest.raises(UserError, match="p hold numbers that are not finite: run `python -m pip"):
        score.main(words(pack, tmp_path / "scores.json", f"predictions={tmp_path}/p"))
