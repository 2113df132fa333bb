"""Training in fp16 with a scaled loss, and what tf32 means; bf16 is in test_train."""

import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline import train
from pipeline.base.errors import UserError
from pipeline.compute import execution
from pipeline.compute.distributed import Ranks
from pipeline.flow import probability_path
from pipeline.training import checkpoint
from pipeline.training.trainer import Trainer
from tests.test_train import losses, run, words
from tests.training.infinite import InfiniteGradient

CPU = Ranks(0, 1, torch.device("cpu"))
FP16 = "train.precision=fp16"


@pytest.fixture(scope="module")
def reference(pack: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple:
    return run(pack, tmp_path_factory.mktemp("reference"))


@pytest.fixture(scope="module")
def fp16(pack: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple:
    out = tmp_path_factory.mktemp("fp16")
    keys = [FP16, "train.clip_grad_norm=0.5", "runtime.keep_checkpoints=9"]
    return out, keys, *run(pack, out, *keys)


@pytest.fixture
def flags() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def taken(pack: Path, out: Path, *more: str) -> Trainer:
    """A trainer before its first step."""
    return Trainer(train.prepare(words(pack, out, *more), 1), CPU)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def test_tf32_is_fp32_on_a_cpu(reference: tuple, pack: Path, tmp_path: Path) -> None:
    weights, rows = run(pack, tmp_path, "train.precision=tf32")
    assert same(weights, reference[0]) and losses(rows) == losses(reference[1])


@pytest.mark.parametrize(("precision", "rounds"), [("tf32", True), ("fp32", False)])
def test_float32_on_cuda_is_what_the_key_says(flags: None, precision: str, rounds: bool) -> None:
    execution.set_float32(precision, torch.device("cuda"))
    assert torch.backends.cuda.matmul.allow_tf32 is rounds
    assert torch.backends.cudnn.allow_tf32 is rounds
    assert torch.get_float32_matmul_precision() == ("high" if rounds else "highest")


def test_the_compiler_does_not_advise_what_the_key_has_refused(flags: None) -> None:
    advice = "TensorFloat32 tensor cores for float32 matrix multiplication available but not …"
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        warnings.warn(advice, stacklevel=1)
        execution.set_float32("fp32", torch.device("cuda"))
        warnings.warn(advice, stacklevel=1)
        warnings.warn("something else", stacklevel=1)
    assert [str(warning.message) for warning in heard] == [advice, "something else"]


@pytest.mark.slow
def test_fp16_learns_the_same(fp16: tuple, reference: tuple, pack: Path, tmp_path: Path) -> None:
    _, _, _, rows = fp16
    np.testing.assert_allclose(losses(rows), losses(reference[1]), rtol=2e-2)
    assert losses(rows) != losses(reference[1])
    norms = [[row["grad_norm"] for row in r] for r in (rows, reference[1])]
    np.testing.assert_allclose(norms[0][0], norms[1][0], rtol=2e-2)  # not scaled


@pytest.mark.slow
def test_fp16_goes_on_bit_identically(fp16: tuple, pack: Path) -> None:
    out, keys, weights, rows = fp16
    next(out.glob("checkpoints/*/step-*8.pt")).unlink()
    half = checkpoint.load(next(out.glob("checkpoints/*/step-*6.pt")))
    assert half["scaler"]["scale"] == 2.0**16 and half["scaler"]["_growth_tracker"] == 6
    again, rows_again = run(pack, out, *keys)
    assert same(weights, again) and losses(rows) == losses(rows_again)
    last = checkpoint.load(next(out.glob("checkpoints/*/step-*8.pt")))
    assert last["scaler"]["_growth_tracker"] == 8


@pytest.mark.slow
def test_a_step_that_overflows_changes_no_weight_and_halves_the_scale(
    pack: Path, tmp_path: Path
) -> None:
    subject = taken(pack, tmp_path, FP16, "train.clip_grad_norm=0.5")
    subject.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**32)
    before = {name: value.clone() for name, value in subject.net.state_dict().items()}
    subject.train_step()
    for net in (subject.net, *(average.net for average in subject.averages)):
        assert same(before, net.state_dict())
    row = subject.row(1, 1.0)  # refuses nothing
    assert row["images"] == 12 and row["grad_norm"] == 0.0
    assert subject.scaler.get_scale() == 2.0**31
    for _ in range(15):
        subject.train_step()
    assert not same(before, subject.net.state_dict())
    assert subject.row(15, 1.0)["grad_norm"] > 0
    assert 1 < subject.scaler.get_scale() < 2.0**31


@pytest.mark.slow
def test_a_gradient_that_no_scale_helps_stops(
    pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From 2^4 the scale falls to 1 in four skipped steps; the fifth is an error."""

    plain = probability_path.loss
    subject = taken(pack, tmp_path, FP16)
    subject.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4)
    monkeypatch.setattr(probability_path, "loss", lambda *a: InfiniteGradient.apply(plain(*a)))
    for _ in range(4):
        subject.train_step()
        subject.check_finite()
    subject.train_step()
    with pytest.raises(UserError, match="the gradient is not finite at step 5"):
        subject.check_finite()
