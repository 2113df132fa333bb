"""Denoising trained and used: one model and the same predictions on any hardware."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pipeline import predict, report, score, train
from pipeline.base.errors import UserError
from pipeline.concept import families
from pipeline.concept.denoising_workload import DenoisedSentence
from pipeline.concept.predictions import open_predictions
from pipeline.config.stages import stage_keys
from tests.concept.documents import TWO_TOWER, config_of
from tests.concept.test_training import (
    agree,
    documents_of,
    mean_and_batch,
    resumes_to_the_bit,
    words,
)
from tests.on_ranks import on_ranks, train_on_ranks
from tests.test_train import losses, outcome

KEYS = (*TWO_TOWER, "concept.held_out=0.4")
STEPS = ("concept.denoising_steps=4", "runtime.sample_batch=2")


@pytest.fixture(scope="module")
def folder(pack: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training by one process in one pass per step, and its predictions."""
    folder = tmp_path_factory.mktemp("denoising")
    train.main(words(pack, folder / "train", *KEYS))
    predict.main(predict_words(pack, folder, "predict"))
    return folder


def predict_words(pack: Path, folder: Path, out: str, *more: str) -> list[str]:
    weights = f"weights={folder}/train/weights.safetensors"
    return words(pack, folder / out, *KEYS, *STEPS, weights, *more)


# --- training ------------------------------------------------------------------------------------


def test_it_learns(folder: Path) -> None:
    curve = losses(outcome(folder / "train")[1])
    assert len(curve) == 40 and sum(curve[-10:]) < 0.9 * sum(curve[:10])


def test_in_several_passes(folder: Path, pack: Path, tmp_path: Path) -> None:
    train.main(words(pack, tmp_path, *KEYS, "runtime.micro_batch=6"))
    agree(outcome(tmp_path), outcome(folder / "train"))


def test_stopped_and_resumed_to_the_bit(pack: Path, tmp_path: Path) -> None:
    resumes_to_the_bit(pack, tmp_path, *KEYS)


@pytest.mark.slow
def test_on_two_ranks(folder: Path, pack: Path, tmp_path: Path) -> None:
    """With weights whole and in parts; and the same predictions."""
    runs = [words(pack, tmp_path / s, *KEYS, f"runtime.strategy={s}") for s in ("ddp", "fsdp2")]
    train_on_ranks(2, *runs)
    for strategy in ("ddp", "fsdp2"):
        agree(outcome(tmp_path / strategy), outcome(folder / "train"))
    on_ranks(2, "pipeline.predict", *predict_words(pack, folder, "ranks"))
    one, two = (open_predictions(folder / name) for name in ("predict", "ranks"))
    assert np.array_equal(one.rows, two.rows)
    assert float(np.abs(one.predicted - two.predicted).max()) < 1e-5


class Untrained(nn.Module):
    """Takes half of each noisy vector for the one without noise."""

    def forward(
        self, vectors: Tensor, noise: tuple[Tensor, Tensor, Tensor], *_: object
    ) -> tuple[Tensor, Tensor]:
        signal, share, normals = noise
        return (signal[..., None] * vectors + share[..., None] * normals) / 2, vectors


@settings(max_examples=20)
@given(
    st.lists(st.integers(2, 20), min_size=1, max_size=9),
    st.sampled_from([1, 2, 3, 4, 6, 12]),
    st.integers(0, 3),
)
def test_a_step_is_the_mean_per_sentence_of_its_batch(
    lengths: list[int], micro: int, step: int
) -> None:
    """However it is split: noise, levels and contexts follow the position."""
    workload = DenoisedSentence(config_of(*TWO_TOWER), documents_of(lengths))
    mean, whole = mean_and_batch(workload, Untrained(), step, micro)
    estimates, true = Untrained()(whole.vectors, whole.noise)
    distances = (estimates - true).square().sum(-1)
    real = torch.arange(8) < whole.lengths[:, None]
    wanted = float(distances[real].sum()) / int(whole.lengths.sum())
    assert mean == pytest.approx(wanted, rel=1e-5)


def test_levels_and_contexts_are_drawn_as_the_keys_say() -> None:
    workload = DenoisedSentence(config_of(*TWO_TOWER, "train.batch=3000"), documents_of([8] * 9))
    batch = workload.batch(np.arange(3000))
    counts = torch.bincount(batch.levels.flatten(), minlength=10)
    assert len(counts) == 10 and (counts / batch.levels.numel() - 0.1).abs().max() < 0.01
    assert abs(float(batch.alone.double().mean()) - 0.2) < 0.01
    signal, noise, normals = batch.noise
    assert torch.allclose(signal.square() + noise.square(), torch.ones(()), atol=1e-6)
    assert (signal[batch.levels == 9] == 0).all()
    assert abs(float(normals.mean())) < 0.01 and abs(float(normals.std()) - 1) < 0.01


# --- predictions ---------------------------------------------------------------------------------


def test_predictions_are_functions_of_seed_and_row(folder: Path, pack: Path) -> None:
    one = open_predictions(folder / "predict")
    for out, more, same in (
        ("batch", ["runtime.sample_batch=5"], True),
        ("seed", ["concept.noise_seed=1"], False),
        ("guidance", ["concept.guidance=1"], False),
        ("steps", ["concept.denoising_steps=5"], False),
    ):
        predict.main(predict_words(pack, folder, out, *more))
        other = open_predictions(folder / out)
        assert np.array_equal(one.rows, other.rows)
        assert np.allclose(one.predicted, other.predicted, atol=1e-5) == same, out
    assert one.about.denoised


def test_a_prediction_depends_on_the_sentences_before_it(folder: Path, pack: Path) -> None:
    """Fewer targets have the same predictions: nothing after a sentence is seen."""
    predict.main(predict_words(pack, folder, "few", "concept.num_scored=9"))
    one, few = (open_predictions(folder / name) for name in ("predict", "few"))
    assert 9 <= len(few.rows) < len(one.rows)
    assert np.allclose(few.predicted, one.predicted[: len(few.rows)], atol=1e-5)
    assert one.predicted.std(0).min() > 0.01


def reported(pack: Path, folder: Path, predictions: str) -> tuple[str, str]:
    """The summary and the page of the report of the predictions with this name."""
    more, scores = (*KEYS, *STEPS), folder / f"{predictions}.json"
    score.main([*words(pack, scores, *more), f"predictions={folder}/{predictions}"])
    shutil.copy(pack / "manifest.json", folder / "record.json")
    inputs = [f"curve={folder}/train/curve.jsonl", f"record={folder}/record.json"]
    out = folder / f"report_{predictions}"
    report.main([*words(pack, out, *more), *inputs, f"metrics={scores}"])
    text = " ".join((out / "summary.txt").read_text().split())
    return text, (out / "index.html").read_text()


def test_the_report_says_how_they_were_made(folder: Path, pack: Path) -> None:
    """Its curve stands without the baselines' errors, which are not those of its loss."""
    text, page = reported(pack, folder, "predict")
    assert "one sample each, in 4 steps of DDIM from noise of standard deviation 0.6" in text
    assert "guidance 3 (rescaled by 0.7)" in text
    assert "out of noise of all levels" in page and "dashed" not in page
    assert page.index("predictions are samples of what could follow") < page.index("<table")

    # From noise alone, at once
    predict.main(predict_words(pack, folder, "mean", "concept.denoising_steps=1"))
    text, page = reported(pack, folder, "mean")
    assert "by one step of DDIM from noise of standard deviation 0.6, seed 0, which is not" in text
    assert "samples" not in text and "guidance" not in text


def test_more_steps_than_levels_are_one_sentence(folder: Path, pack: Path) -> None:
    with pytest.raises(UserError, match=re.escape("denoising_steps=11 is more than the 10 noise")):
        predict.main(predict_words(pack, folder, "x", "concept.denoising_steps=11"))


def test_keys_of_denoising_make_nothing_else_run_again() -> None:
    """They are read by predictions alone, and runs from before they were there stay."""
    plain = config_of(*TWO_TOWER)
    assert "guidance" not in stage_keys(plain, "predict")["concept"]
    other = config_of(
        *TWO_TOWER, "concept.guidance=2", "concept.noise_seed=3", "concept.denoising_steps=9"
    )
    for stage in ("prepare", "train", "score", "report"):
        assert stage_keys(other, stage) == stage_keys(plain, stage)
    assert stage_keys(other, "predict")["concept"]["guidance"] == 2
    with pytest.raises(UserError, match=r"guidance=2.0 is not possible, since only a network of"):
        config_of("concept.guidance=2")


def test_a_lack_of_memory_is_told_in_pieces(
    folder: Path, pack: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denoised(*_: object) -> Tensor:
        raise torch.OutOfMemoryError("of this device")

    monkeypatch.setattr(families, "denoised", denoised)
    with pytest.raises(UserError, match=r"^2 pieces at once do not fit on cpu: .*sample_batch"):
        predict.main(predict_words(pack, folder, "no"))
