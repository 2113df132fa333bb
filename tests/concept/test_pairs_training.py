"""Pairs trained, predicted and scored: their targets alone count, on any hardware."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline import predict, report, score, train
from pipeline.concept import made
from pipeline.concept.baselines import fit
from pipeline.concept.denoising_workload import DenoisedSentence
from pipeline.concept.held_out import held_out
from pipeline.concept.network import LCM
from pipeline.concept.pack import open_documents
from pipeline.concept.predictions import Predictions, open_predictions
from pipeline.concept.score_record import Scores
from pipeline.concept.workload import NextSentence
from pipeline.config.model_keys import LCMKeys
from pipeline.training.weights_file import load_weights
from tests.concept import test_denoising
from tests.concept.documents import TWO_TOWER, config_of, made_pack
from tests.concept.test_training import (
    Untrained,
    agree,
    documents_of,
    mean_and_batch,
    resumes_to_the_bit,
    words,
)
from tests.on_ranks import on_ranks, train_on_ranks
from tests.test_train import outcome

PAIRS = ("concept.pairs=true", "concept.held_out=0.3")
KINDS: dict[str, tuple[str, ...]] = {"lcm": (), "lcm_two_tower": TWO_TOWER}
PARTS = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=9)
MICRO = st.sampled_from([1, 2, 3, 4, 6, 12])


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small pack of made pairs, of at most 8 sentences."""
    folder = tmp_path_factory.mktemp("pairs") / "pack"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(made, "LONGEST_PART", 4)
        made_pack(folder, patch, *PAIRS)
    return folder


@pytest.fixture(scope="module")
def folder(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training of each kind by one process in one pass per step."""
    folder = tmp_path_factory.mktemp("pairs_trained")
    for kind, keys in KINDS.items():
        train.main(words(pairs, folder / kind, *PAIRS, *keys))
    return folder


# --- the loss ------------------------------------------------------------------------------------


def by_hand(estimates: Tensor, vectors: Tensor, places: list[tuple[int, int, int]]) -> float:
    """The mean squared distance per target, in numpy, of (document, place of estimate, place)."""
    predicted, true = estimates.numpy().astype(np.float64), vectors.numpy().astype(np.float64)
    errors = [((predicted[i, at] - true[i, t]) ** 2).sum() for i, at, t in places]
    return float(np.mean(errors))


@settings(max_examples=30)
@given(PARTS, MICRO, st.integers(0, 3), st.sampled_from([*KINDS]))
def test_a_step_is_the_mean_per_sentence_of_its_targets(
    parts: list[tuple[int, int]], micro: int, step: int, kind: str
) -> None:
    """However it is split; by a plain loop over the targets."""
    documents = documents_of([sum(part) for part in parts], [part[0] for part in parts])
    config = config_of(*PAIRS[:1], *KINDS[kind])
    if kind == "lcm":
        mean, whole = mean_and_batch(NextSentence(config, documents), Untrained(), step, micro)
        estimates, shift = Untrained()(whole.vectors, None)[0], 1
    else:
        network = test_denoising.Untrained()
        mean, whole = mean_and_batch(DenoisedSentence(config, documents), network, step, micro)
        estimates, shift = network(whole.vectors, whole.noise)[0], 0
    firsts = [vector.tobytes() for vector in documents.vectors[documents.offsets[:-1]]]
    prompts = dict(zip(firsts, parts, strict=True))
    places = []
    for i, vectors in enumerate(whole.vectors.numpy()):
        prompt, target = prompts[vectors[0].tobytes()]
        places += [(i, t - shift, t) for t in range(prompt, prompt + target)]
    assert mean == pytest.approx(by_hand(estimates, whole.vectors, places), rel=1e-5)


@settings(max_examples=10)
@given(st.lists(st.integers(2, 8), min_size=1, max_size=9), MICRO, st.integers(0, 3))
def test_prompts_of_a_sentence_change_no_bit_of_a_regression(
    lengths: list[int], micro: int, step: int
) -> None:
    plain = NextSentence(config_of(), documents_of(lengths))
    pairs = NextSentence(config_of(PAIRS[0]), documents_of(lengths, [1] * len(lengths)))
    losses = [mean_and_batch(workload, Untrained(), step, micro)[0] for workload in (plain, pairs)]
    assert losses[0] == losses[1]


# --- one model, whatever the hardware ------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_in_several_passes_and_resumed(
    kind: str, folder: Path, pairs: Path, tmp_path: Path
) -> None:
    more = (*PAIRS, *KINDS[kind])
    train.main(words(pairs, tmp_path / "passes", *more, "runtime.micro_batch=6"))
    agree(outcome(tmp_path / "passes"), outcome(folder / kind))
    resumes_to_the_bit(pairs, tmp_path, *more)


@pytest.mark.slow
def test_on_two_ranks(folder: Path, pairs: Path, tmp_path: Path) -> None:
    """In one pass and in two, whole or divided, and the same predictions."""
    runtime = {"one": ("micro_batch=6",), "two": ("micro_batch=3",), "divided": ("strategy=fsdp2",)}
    cases = [(kind, way) for kind in KINDS for way in runtime]
    runs = [
        words(
            pairs, tmp_path / f"{kind}-{way}", *PAIRS, *KINDS[kind],
            *(f"runtime.{key}" for key in runtime[way]),
        )
        for kind, way in cases
    ]  # fmt: skip
    train_on_ranks(2, *runs)
    for kind, way in cases:
        agree(outcome(tmp_path / f"{kind}-{way}"), outcome(folder / kind))
    made_by_one = predicted(folder, pairs, "lcm")
    on_ranks(2, "pipeline.predict", *predict_words(folder, pairs, "lcm", "ranks"))
    two = open_predictions(folder / "ranks")
    assert float(np.abs(made_by_one.predicted - two.predicted).max()) < 1e-5


# --- predictions and scores ----------------------------------------------------------------------


def predict_words(folder: Path, pairs: Path, kind: str, out: str) -> list[str]:
    more = ("concept.denoising_steps=4",) if kind == "lcm_two_tower" else ()
    weights = f"weights={folder}/{kind}/weights.safetensors"
    more = (*PAIRS, *KINDS[kind], *more, "runtime.sample_batch=2", weights)
    return words(pairs, folder / out, *more)


def predicted(folder: Path, pairs: Path, kind: str) -> Predictions:
    predict.main(predict_words(folder, pairs, kind, f"predict_{kind}"))
    return open_predictions(folder / f"predict_{kind}")


@pytest.mark.parametrize("kind", KINDS)
def test_targets_of_held_out_pairs_are_predicted_and_scored(
    kind: str, folder: Path, pairs: Path
) -> None:
    made_by = predicted(folder, pairs, kind)
    documents = open_documents(config_of(f"data.path={pairs}", *PAIRS))
    assert documents.prompts is not None
    chosen = held_out(24, 0.3)
    wanted = targets_of(documents.offsets, documents.prompts, chosen)
    assert made_by.rows.tolist() == wanted and made_by.about.num_targets == len(wanted)

    # Scores of them, and baselines of the targets of the training
    out = folder / f"scores_{kind}.json"
    more = (*PAIRS, *KINDS[kind])
    score.main([*words(pairs, out, *more), f"predictions={folder}/predict_{kind}"])
    scores = Scores.read(out)
    assert scores.num_targets == len(wanted)
    others = targets_of(documents.offsets, documents.prompts, ~chosen)
    assert scores.fit.num_pairs == len(others)
    true = (documents.vectors - documents.normaliser.center) / documents.normaliser.scale
    distances = np.square(made_by.predicted - true[wanted].astype(np.float32)).sum(1)
    assert scores.network.squared_error == pytest.approx(distances.mean(), rel=1e-5)
    mean = fit(documents, made_by.about.keys).mean.numpy()
    assert np.allclose(mean, true[others].mean(0), atol=1e-5)

    # And the report
    inputs = [f"curve={folder}/{kind}/curve.jsonl", f"record={pairs}/manifest.json"]
    report.main([*words(pairs, folder / f"report_{kind}", *more), *inputs, f"metrics={out}"])
    text = " ".join((folder / f"report_{kind}" / "summary.txt").read_text().split())
    assert "Each sentence of a pair's target is predicted from its prompt" in text


def targets_of(offsets: np.ndarray, prompts: np.ndarray, chosen: np.ndarray) -> list[int]:
    """The rows of the targets of the chosen pairs."""
    return [
        row
        for k in np.flatnonzero(chosen)
        for row in range(offsets[k] + prompts[k], offsets[k + 1])
    ]


def test_a_prediction_sees_the_prompt(folder: Path, pairs: Path) -> None:
    """That of the first sentence of a target is what the network says after the prompt."""
    made_by = predicted(folder, pairs, "lcm")
    config = config_of(f"data.path={pairs}", *PAIRS)
    documents = open_documents(config)
    assert isinstance(config.model, LCMKeys) and documents.prompts is not None
    net = LCM(config.model, documents.normaliser, 8).eval()
    net.load_state_dict(load_weights(folder / "lcm/weights.safetensors"))
    for k in np.flatnonzero(held_out(24, 0.3)):
        start = documents.offsets[k]
        prompt = documents.vectors[start : start + documents.prompts[k]]
        with torch.no_grad():
            wanted = net(torch.from_numpy(np.array(prompt))[None])[0][0, -1].numpy()
        place = made_by.rows.tolist().index(start + documents.prompts[k])
        assert np.allclose(made_by.predicted[place], wanted, atol=1e-5)
