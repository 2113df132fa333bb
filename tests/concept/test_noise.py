"""Levels of noise and the steps back, against diffusers' DDIMScheduler (fixtures/ddim.npz).

The fixture is of diffusers 0.35.1: squaredcos_cap_v2, rescale_betas_zero_snr, trailing spacing,
prediction_type=sample, no clipping; `end_<k>` is its result of k steps from `start` by an
estimator, tanh(x W) + level / 100. Numbers of steps that do not divide the number of levels have no
result there: diffusers then steps to other levels than those that it evaluates.
"""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pipeline.concept.noise import ddim, guided, noise_of, signals, trailing
from tests.conftest import ROOT

ORACLE = np.load(ROOT / "tests/fixtures/ddim.npz")


@pytest.mark.parametrize("num", [10, 100])
def test_signals_are_theirs(num: int) -> None:
    signal = signals(num)
    assert np.allclose(signal.square(), ORACLE[f"squared_signals_{num}"], atol=1e-6, rtol=0)
    assert signal[-1] == 0 and (signal.diff() < 0).all()
    assert torch.allclose(signal.square() + noise_of(signal).square(), torch.ones_like(signal))


@pytest.mark.parametrize(("num", "steps"), [(10, 7), (10, 10), (100, 1), (100, 7), (100, 40)])
def test_levels_of_steps_are_theirs(num: int, steps: int) -> None:
    assert trailing(num, steps) == ORACLE[f"levels_{num}_{steps}"].tolist()


@given(st.integers(2, 300), st.data())
def test_levels_fall_from_the_last_one(num: int, data: st.DataObject) -> None:
    levels = trailing(num, data.draw(st.integers(1, num)))
    assert levels[0] == num - 1 and levels[-1] >= 0
    assert all(a > b for a, b in pairwise(levels))


@pytest.mark.parametrize("steps", [10, 20])
def test_steps_are_theirs(steps: int) -> None:
    weights, start = (torch.from_numpy(ORACLE[name]) for name in ("weights", "start"))
    end = ddim(lambda x, level, _: torch.tanh(x @ weights) + 0.01 * level, start, 100, steps, 1, 0)
    assert np.allclose(end, ORACLE[f"end_{steps}"], atol=1e-6)


@given(st.integers(1, 30), st.floats(0, 5), st.floats(0, 1))
def test_what_is_known_is_found(steps: int, guidance: float, rescale: float) -> None:
    """Whatever the noise, the number of steps and the weight: both estimates are the same."""
    known, start = torch.arange(12.0).view(1, 2, 6), torch.randn(1, 2, 6)
    end = ddim(lambda *_: known, start, 30, steps, guidance, 0.0)
    assert torch.allclose(end, known, atol=2e-3)
    if steps == 1:  # not guided
        assert torch.equal(ddim(lambda *_: known, start, 30, 1, guidance, rescale), known)


def test_guidance_of_noises() -> None:
    generator = torch.Generator().manual_seed(0)
    one, two = torch.randn(2, 5, 64, generator=generator).unbind()
    plain = guided(one, two, 3.0, 0.0)
    assert torch.allclose(plain, 3 * one - 2 * two, atol=1e-5)
    whole = guided(one, two, 3.0, 1.0)  # the direction of the guided, the spread of the other
    assert torch.allclose(whole.std(-1), one.std(-1), atol=1e-5)
    assert torch.allclose(torch.cosine_similarity(whole, plain, -1), torch.ones(5), atol=1e-5)
    assert torch.allclose(guided(one, two, 3.0, 0.7), 0.7 * whole + 0.3 * plain, atol=1e-5)


def test_unguided_asks_for_one_estimate() -> None:
    asked: list[tuple[int, bool]] = []

    def estimate(x: Tensor, level: int, is_alone: bool) -> Tensor:
        asked.append((level, is_alone))
        return x

    ddim(estimate, torch.randn(1, 1, 4), 10, 2, 1.0, 0.7)
    assert asked == [(9, False), (4, False)]
    asked.clear()
    ddim(estimate, torch.randn(1, 1, 4), 10, 2, 3.0, 0.7)
    assert asked == [(9, False), (4, False), (4, True)]
