"""Discrete flows under a trainer that knows nothing of them: drawn by position, resumed."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline import train
from pipeline.base.errors import UserError
from pipeline.flow import mixture_path
from pipeline.flow.discrete_workload import DiscreteFlow, TokenBatch
from pipeline.flow.made_up import made_up, made_up_pack
from pipeline.flow.tokens import pixels_of, tokens_of
from tests import discrete
from tests.conftest import resolved
from tests.on_ranks import train_on_ranks
from tests.test_train import Tensor, difference, losses, outcome

CPU = torch.device("cpu")
SMALL = ("experiment=tiny", *discrete.WORDS, "train.images=96", "train.batch=12",
         "model.dropout=0.2", "train.lr=1e-3", "train.warmup_images=0", "train.flip=true",
         "train.ema_halflife_images=50", "runtime.log_images=12", "runtime.device=cpu",
         "runtime.progress_seconds=1000")  # fmt: skip


def placed(*words: str) -> DiscreteFlow:
    """A workload on made-up images."""
    workload = made_up(resolved(*SMALL, *words), 10)
    assert isinstance(workload, DiscreteFlow)
    workload.place(CPU, announce=False)
    return workload


def fields(batch: TokenBatch) -> list[Tensor]:
    return [batch.x1, batch.x_t, batch.t, batch.labels, batch.keys]


def test_a_batch_is_a_function_of_seed_and_positions() -> None:
    workload, positions = placed(), np.arange(5000, 5024)
    whole = fields(workload.batch(positions))
    order = np.random.default_rng(1).permutation(24)
    parts = [fields(placed().batch(positions[order[k : k + 8]])) for k in (0, 8, 16)]
    for field, *of_parts in zip(whole, *parts, strict=True):
        assert torch.equal(torch.cat(of_parts), field[torch.from_numpy(order)])
    other = fields(placed("train.seed=1").batch(positions))
    assert all(not torch.equal(a, b) for a, b in zip(whole, other, strict=True))


def test_masks_are_as_many_as_the_path_says() -> None:
    batch = placed("train.mask_exponent=2").batch(np.arange(600))
    is_open = (batch.x_t != 16).flatten(1).double()
    assert torch.equal(batch.x_t[batch.x_t != 16], batch.x1[batch.x_t != 16])
    kappa = batch.t.double() ** 2
    # 192 values of 600 images: mean and spread of the binomial
    score = (is_open.sum(1) - 192 * kappa) / (192 * kappa * (1 - kappa)).sqrt()
    assert abs(float(score.mean())) < 0.15 and 0.9 < float(score.std()) < 1.1


@pytest.mark.parametrize("values", [2, 16, 256])
def test_tokens_name_levels(values: int) -> None:
    pixels = torch.arange(256, dtype=torch.uint8)
    tokens = tokens_of(pixels, values)
    back = pixels_of(tokens, values)
    assert tokens.unique().tolist() == list(range(values))
    assert torch.equal(tokens_of(back, values), tokens)
    assert (back.int() - pixels.int()).abs().max() <= 128 // values
    assert pixels_of(torch.tensor([values]), values).item() == 128


@given(st.floats(0.1, 0.99), st.floats(0.5, 5), st.integers(0, 16), st.integers(0, 15))
def test_the_divergence_is_least_at_the_truth(t: float, n: float, x_t: int, x1: int) -> None:
    """Of a place that is open, or hidden: the loss is 0 for a certain and right prediction."""
    x_t = x1 if x_t < 16 else x_t
    at, tokens = torch.tensor([t]), torch.tensor([x1])
    right = torch.full((1, 17), -30.0)
    right[0, x1] = 30
    arguments = (tokens, torch.tensor([x_t]), at, n)
    best = mixture_path.generalised_kl(right, *arguments)
    worse = mixture_path.generalised_kl(torch.zeros(1, 17), *arguments)
    assert abs(float(best)) < 1e-6 < float(worse)


def test_messages_and_shapes_of_an_empty_batch() -> None:
    workload = placed("train.token_loss=generalised_kl")
    net, batch = workload.build(), workload.zeros(2, CPU)
    assert all(a.shape[1:] == b.shape[1:] and a.dtype == b.dtype for a, b in zip(
        fields(batch), fields(workload.batch(np.arange(3))), strict=True))  # fmt: skip
    assert workload.loss(net, batch).isfinite()
    with pytest.raises(UserError, match="call place"):
        DiscreteFlow(workload.config, made_up_pack(8, 10, 20)).batch(np.arange(2))


# --- training ------------------------------------------------------------------------------------


LOSSES = ("cross_entropy", "generalised_kl")


def words(pack: Path, out: Path, loss: str, *more: str) -> list[str]:
    return [*SMALL, f"train.token_loss={loss}", f"data.path={pack}", f"out={out}", *more]


def run(pack: Path, out: Path, loss: str, *more: str) -> tuple:
    train.main(words(pack, out, loss, *more))
    return outcome(out)


@pytest.fixture(scope="module")
def references(pack: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple]:
    """By loss: one process, one pass per step."""
    return {loss: run(pack, tmp_path_factory.mktemp("discrete"), loss) for loss in LOSSES}


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES)
def test_it_resumes_to_the_bit(
    references: dict[str, tuple], loss: str, pack: Path, tmp_path: Path
) -> None:
    run(pack, tmp_path, loss, "train.images=48")
    weights, rows = run(pack, tmp_path, loss)
    reference = references[loss]
    assert all(torch.equal(weights[name], reference[0][name]) for name in reference[0])
    assert losses(rows) == losses(reference[1]) and len(rows) == 8


@pytest.mark.slow
def test_two_ranks_make_the_same_model(
    references: dict[str, tuple], pack: Path, tmp_path: Path
) -> None:
    cases = [(loss, strategy) for loss in LOSSES for strategy in ("ddp", "fsdp2")]
    runs = []
    for loss, strategy in cases:
        keys = (f"runtime.strategy={strategy}", "runtime.micro_batch=3")
        runs.append(words(pack, tmp_path / f"{loss}-{strategy}", loss, *keys))
    train_on_ranks(2, *runs)
    for loss, strategy in cases:
        weights, rows = outcome(tmp_path / f"{loss}-{strategy}")
        reference = references[loss]
        assert losses(rows) == pytest.approx(losses(reference[1]), rel=1e-5)
        assert difference(weights, reference[0]) < 1e-4


def test_it_starts_at_the_entropy_of_the_values_and_learns(references: dict[str, tuple]) -> None:
    curve = losses(references["cross_entropy"][1])
    assert curve[0] == pytest.approx(np.log(17), rel=1e-6) and curve[-1] < curve[0]
