"""The workload trained: the same model on any number of ranks, in any passes, and after a kill."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pipeline import sample, train
from pipeline.base.errors import UserError
from pipeline.concept.loss import squared_error
from pipeline.concept.normaliser import Normaliser
from pipeline.concept.pack import Documents, Hashes, Record, open_documents
from pipeline.concept.workload import NextSentence
from pipeline.training.weights_file import read_about
from tests.concept.documents import DIMENSION, WORDS, config_of, vectors_of
from tests.conftest import ROOT
from tests.on_ranks import train_on_ranks
from tests.test_train import difference, losses, outcome


def words(pack: Path, out: Path, *more: str) -> list[str]:
    return [*WORDS, f"data.path={pack}", f"out={out}", *more]


@pytest.fixture(scope="module")
def reference(pack: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple:
    """Weights and curve of one process, one pass per step."""
    out = tmp_path_factory.mktemp("reference")
    train.main(words(pack, out))
    return outcome(out)


def agree(other: tuple, reference: tuple) -> None:
    assert losses(other[1]) == pytest.approx(losses(reference[1]), rel=1e-5)
    assert difference(other[0], reference[0]) < 1e-5


def resumes_to_the_bit(pack: Path, folder: Path, *keys: str) -> None:
    """A training that goes on from its middle ends as one that nothing ended."""
    more = (*keys, "train.lr_schedule=constant")  # so that a longer training goes on
    for images in (240, 480):
        train.main(words(pack, folder / "parts", *more, f"train.images={images}"))
    train.main(words(pack, folder / "whole", *more))
    parts, whole = (outcome(folder / name) for name in ("parts", "whole"))
    assert all(torch.equal(parts[0][name], value) for name, value in whole[0].items())
    assert losses(parts[1]) == losses(whole[1])


# --- one model, whatever the hardware ------------------------------------------------------------


def test_it_learns(reference: tuple) -> None:
    curve = losses(reference[1])
    assert len(curve) == 40 and curve[-1] < 0.8 * curve[0]


def test_in_several_passes(reference: tuple, pack: Path, tmp_path: Path) -> None:
    train.main(words(pack, tmp_path, "runtime.micro_batch=6"))
    agree(outcome(tmp_path), reference)


def test_a_loss_that_is_not_finite_is_told_in_pieces(pack: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not finite at step .*, first at pieces .* of the run"):
        train.main(words(pack, tmp_path, "train.lr=1e30", "train.clip_grad_norm=null"))


@pytest.mark.slow
def test_on_two_ranks(reference: tuple, pack: Path, tmp_path: Path) -> None:
    """In one pass and in two, with weights whole and in parts."""
    cases = [(strategy, micro) for strategy in ("ddp", "fsdp2") for micro in (6, 3)]
    runs = [
        words(pack, tmp_path / f"{s}-{m}", f"runtime.micro_batch={m}", f"runtime.strategy={s}")
        for s, m in cases
    ]
    train_on_ranks(2, *runs)
    for strategy, micro in cases:
        agree(outcome(tmp_path / f"{strategy}-{micro}"), reference)


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_bits(
    reference: tuple, pack: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "pipeline.train", *words(pack, tmp_path, "train.images=96000")]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    since = time.monotonic()
    while not list(tmp_path.glob("checkpoints/*/step-*.pt")) and time.monotonic() - since < 100:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and not (tmp_path / "weights.safetensors").exists()
    newest = max(int(re.findall(r"\d+", p.name)[0]) for p in tmp_path.glob("checkpoints/*/step*"))
    assert 0 < newest < 40  # else there is nothing to go on to
    train.main(words(pack, tmp_path))
    weights, rows = outcome(tmp_path)
    assert all(torch.equal(weights[name], reference[0][name]) for name in reference[0])
    assert losses(rows) == losses(reference[1])


def test_weights_say_what_they_are_of(pack: Path, tmp_path: Path) -> None:
    train.main(words(pack, tmp_path, "train.images=12"))
    about, documents = (
        read_about(tmp_path / "weights.safetensors"),
        open_documents(config_of(f"data.path={pack}")),
    )
    assert about.record["sha256"]["normaliser"] == documents.normaliser.sha256
    assert about.config["workload"] == "concept" and about.config["model"]["kind"] == "lcm"
    weights = outcome(tmp_path)[0]
    assert np.array_equal(weights["center"], documents.normaliser.center)


# --- the loss ------------------------------------------------------------------------------------


class Untrained(nn.Module):
    """Predicts half of each vector for the next one."""

    def forward(self, vectors: Tensor, keys: Tensor | None) -> tuple[Tensor, Tensor]:
        return vectors / 2, vectors


def documents_of(lengths: list[int], prompts: list[int] | None = None) -> Documents:
    vectors = np.concatenate(vectors_of(lengths))
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    record = Record(
        name="x", dimension=DIMENSION, num_documents=len(lengths), num_sentences=len(vectors),
        has_suffix=False, sha256=Hashes(vectors="0", offsets="1"),
    )  # fmt: skip
    normaliser = Normaliser(*np.ones((2, DIMENSION), np.float32))
    array = None if prompts is None else np.array(prompts, np.int64)
    return Documents(vectors, offsets, record, normaliser, array)


def mean_and_batch(
    workload: NextSentence, network: nn.Module, step: int, micro: int
) -> tuple[float, Any]:
    """The mean loss of the passes of `micro` pieces of a step of 12, and the step as one batch."""
    positions = np.arange(12 * step, 12 * step + 12)
    parts = [workload.batch(part) for part in np.split(positions, 12 // micro)]
    mean = sum(float(workload.loss(network, part)) for part in parts) / len(parts)
    return mean, workload.batch(positions)


@settings(max_examples=30)
@given(
    st.lists(st.integers(2, 20), min_size=1, max_size=9),
    st.sampled_from([1, 2, 3, 4, 6, 12]),
    st.integers(0, 3),
)
def test_a_step_is_the_mean_per_target_of_its_batch(
    lengths: list[int], micro: int, step: int
) -> None:
    """However it is split: the trainer takes the mean of the parts."""
    workload = NextSentence(config_of(), documents_of(lengths))
    mean, whole = mean_and_batch(workload, Untrained(), step, micro)
    error = squared_error(*Untrained()(whole.vectors, None), whole.lengths)
    wanted = float(error) / int((whole.lengths - 1).sum())
    assert mean == pytest.approx(wanted, rel=1e-5)


def test_an_epoch_sees_each_piece_once() -> None:
    workload = NextSentence(config_of(), documents_of([5, 9, 2, 1, 24]))
    assert workload.num_items == 1 + 1 + 1 + 3  # of at most 8; the ninth sentence has no target
    first = [workload.batch(np.array([p])).vectors[0, 0].tolist() for p in range(6)]
    rows = [0, 5, 14, 17, 25, 33]
    assert sorted(first) == sorted(workload.documents.vectors[rows].tolist())
    again = workload.batch(np.array([3])).vectors[0, 0].tolist()
    assert again == first[3]


def test_messages_say_which_sentences() -> None:
    workload = NextSentence(config_of(), documents_of([3] * 30))
    one = workload.locate(np.array([0]))
    assert re.fullmatch(r"sentences 0 to 2 of \d+ in the pack", one)
    assert workload.locate(np.arange(20)).endswith(" and 4 more pieces in the pack")


# --- what is refused -----------------------------------------------------------------------------


def test_documents_without_a_target_are_refused() -> None:
    with pytest.raises(UserError, match="has no document of two sentences"):
        NextSentence(config_of("data.path=x"), documents_of([1, 1]))


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["data.path=nowhere"], "pack nowhere is missing: run `python -m pipeline.prepare`"),
        (["concept.dimension=7"], "has vectors of 6 numbers, concept.dimension=7"),
        (["concept.scale=lcm_tails"], "normaliser-lcm_tails.npz is missing"),
        (["record=x.json"], "x.json is missing"),
        (
            ["train.flip=true"],
            "workload=concept, since it is about images: give train.flip=false",
        ),
        (
            ["experiment=tiny", "workload=concept"],
            "workload=concept does not train a network of model.kind=unet: give model.kind=lcm",
        ),
        (["workload=flow"], "workload=flow does not train a network of model.kind=lcm"),
        (["concept=null"], "workload=concept needs the section concept"),
        (["concept.max_sentences=1"], "concept.max_sentences=1 is not valid"),
        (["runtime.data_on_device=true"], "runtime.data_on_device=true is for packs of images"),
    ],
)
def test_bad_words_are_one_sentence(
    more: list[str], sentence: str, pack: Path, tmp_path: Path
) -> None:
    given = more if "experiment=tiny" in more else words(pack, tmp_path, *more)
    with pytest.raises(UserError, match=re.escape(sentence)):
        train.main(given)


def test_changed_vectors_are_found_at_the_start(pack: Path, tmp_path: Path) -> None:
    copy = tmp_path / "pack"
    copy.mkdir()
    for file in pack.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    content = bytearray((copy / "vectors.npy").read_bytes())
    content[-1] ^= 1
    (copy / "vectors.npy").write_bytes(content)
    with pytest.raises(UserError, match=r"vectors.npy has changed since it was written"):
        train.main(words(copy, tmp_path / "out"))


def test_steps_of_images_say_that_there_are_none() -> None:
    with pytest.raises(UserError, match="documents, not on images: .* predict, score"):
        sample.main([*WORDS, "seed=0"])
