"""Learning-rate schedules against torch's, and where they rise and fall."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    LinearLR,
    LRScheduler,
)

from pipeline.base.errors import UserError
from pipeline.config.train_keys import Train
from pipeline.training.learning_rate import learning_rate
from tests.conftest import ROOT, resolved

STEPS, BATCH, LR = 50, 4, 0.3
BASE = resolved("experiment=tiny", f"train.lr={LR}", f"train.batch={BATCH}").train


def train(schedule: str, **more: object) -> Train:
    values = {"lr_schedule": schedule, "images": STEPS * BATCH, "warmup_images": 0, **more}
    return BASE.model_copy(update=values)


def torchs(kind: type[LRScheduler], **arguments: float) -> list[float]:
    """Rates of torch's scheduler before each step."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=LR)
    scheduler = kind(optimizer, **arguments)
    rates = []
    for _ in range(STEPS + 1):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return rates


def ours(keys: Train) -> list[float]:
    return [learning_rate(keys, step * BATCH) for step in range(STEPS + 1)]


@pytest.mark.parametrize("final", [0.0, 0.2])
def test_linear_and_cosine_are_torchs(final: float) -> None:
    linear = torchs(LinearLR, total_iters=STEPS, start_factor=1.0, end_factor=final)
    cosine = torchs(CosineAnnealingLR, T_max=STEPS, eta_min=final * LR)
    assert ours(train("linear", lr_final=final)) == pytest.approx(linear, abs=1e-12)
    assert ours(train("cosine", lr_final=final)) == pytest.approx(cosine, abs=1e-12)


def test_inverse_square_root() -> None:
    keys = train("inverse_sqrt", lr_decay_images=40)
    assert learning_rate(keys, 0) == learning_rate(keys, 40) == LR
    assert learning_rate(keys, 160) == pytest.approx(LR / 2)
    assert learning_rate(keys, 4000) == pytest.approx(LR / 10)


def test_cosine_with_restarts_is_torchs() -> None:
    with_restarts = torchs(CosineAnnealingWarmRestarts, T_0=20, eta_min=0.2 * LR)
    keys = train("cosine_restarts", lr_final=0.2, lr_cycle_images=20 * BATCH)
    assert ours(keys) == pytest.approx(with_restarts, abs=1e-12)


def test_restarts_after_a_warm_up_are_those_of_the_large_concept_model() -> None:
    """Also where it warms up from: 1e-7 in the first step, 4e-4 after ten."""
    with np.load(ROOT / "tests" / "fixtures" / "lcm_mse_tiny.npz") as oracle:
        rates = oracle["schedule/cosine_lr"]
    keys = train(
        "cosine_restarts",
        lr=4e-4,
        lr_final=1e-5 / 4e-4,
        lr_cycle_images=91 * BATCH,
        warmup_images=10 * BATCH,
        warmup_from=1e-7 / 4e-4,
    )
    assert [learning_rate(keys, i * BATCH) for i in range(105)] == pytest.approx(rates, rel=1e-12)


def test_restarts_need_the_length_of_a_cycle() -> None:
    with pytest.raises(
        UserError, match=r"train.lr_cycle_images=None is not valid: cosine_restarts"
    ):
        resolved("train.lr_schedule=cosine_restarts")


SCHEDULES = st.sampled_from(["constant", "linear", "cosine", "inverse_sqrt"])


@given(SCHEDULES, st.integers(0, 300), st.integers(1, 300), st.floats(0, 1))
def test_rises_over_the_warm_up_then_never(
    schedule: str, warmup: int, decay: int, final: float
) -> None:
    keys = train(schedule, warmup_images=warmup, lr_decay_images=decay, lr_final=final)
    rates = ours(keys)
    assert all(0 <= rate <= LR + 1e-12 for rate in rates)
    after = [rate for k, rate in enumerate(rates) if (k + 1) * BATCH >= warmup]
    assert all(a >= b - 1e-12 for a, b in pairwise(after))
    if schedule != "inverse_sqrt":
        rising = [k for k in range(STEPS) if (k + 1) * BATCH <= warmup]
        assert [rates[k] for k in rising] == pytest.approx(
            [LR * (k + 1) * BATCH / warmup for k in rising]
        )


def test_ends_at_the_length_of_the_run_and_stays_there() -> None:
    for schedule in ("linear", "cosine"):
        keys = train(schedule, lr_final=0.1, warmup_images=20)
        for images in (STEPS * BATCH, 10 * STEPS * BATCH):
            assert math.isclose(learning_rate(keys, images), 0.1 * LR)


@pytest.mark.parametrize("epoch", [0, 1, 450, 899, 900])
def test_the_reference_is_900_epochs_of_a_line_over_921(epoch: int) -> None:
    keys = resolved("data.resolution=64").train
    published = 1e-4 + (1e-8 - 1e-4) * epoch / 921
    assert learning_rate(keys, epoch * 1281167) == pytest.approx(published, abs=1e-9)
