"""How times are spread: against scipy's distributions; and their range."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats

from pipeline.compute import draws
from pipeline.flow.times import EARLIEST, sample_times
from tests.conftest import resolved

UNIFORM = draws.uniform(3, draws.TIME, torch.arange(20_000))
KINDS = st.sampled_from(["uniform", "logit_normal", "edm_skew"])


def test_uniform_times_are_the_draws() -> None:
    assert torch.equal(sample_times("uniform", UNIFORM, None, None), UNIFORM)
    assert stats.kstest(UNIFORM.numpy(), "uniform").pvalue > 0.05


@pytest.mark.parametrize(("mean", "std"), [(None, None), (0.7, 0.4), (-1.0, 2.0)])
def test_logit_normal(mean: float | None, std: float | None) -> None:
    t = sample_times("logit_normal", UNIFORM, mean, std).numpy()
    normal = stats.norm(0.0 if mean is None else mean, 1.0 if std is None else std)
    assert stats.kstest(special.logit(t.astype(np.float64)), normal.cdf).pvalue > 0.05
    exact = special.expit(normal.ppf(UNIFORM.double().numpy()))
    np.testing.assert_allclose(t, exact, rtol=1e-6)


@pytest.mark.parametrize(("mean", "std"), [(None, None), (-0.8, 1.6)])
def test_edm_skew_is_lognormal_in_noise_over_data(mean: float | None, std: float | None) -> None:
    t = sample_times("edm_skew", UNIFORM, mean, std).double().numpy()
    scale = np.exp(-1.2 if mean is None else mean)
    sigma = stats.lognorm(1.2 if std is None else std, scale=scale)
    assert stats.kstest((1 - t) / t, sigma.cdf).pvalue > 0.05
    assert np.median(t) == pytest.approx(1 / (1 + scale), abs=0.01)


def test_edm_skew_is_cut_off_at_the_noise_end() -> None:
    t = sample_times("edm_skew", torch.tensor([0.5, 1e-7]), 20.0, 1.2)
    assert torch.equal(t, torch.full((2,), EARLIEST))


@given(
    kind=KINDS,
    cell=st.integers(0, 2**23 - 1),
    mean=st.none() | st.floats(-50, 50),
    std=st.none() | st.floats(1e-3, 50),
)
def test_times_lie_between_noise_and_data(
    kind: str, cell: int, mean: float | None, std: float | None
) -> None:
    uniform = torch.tensor([(cell + 0.5) * 2.0**-23])
    t = sample_times(kind, uniform, mean, std)
    assert t.shape == (1,) and t.dtype == torch.float32
    assert 0 <= float(t) <= 1
    assert float(t) < 1 or kind == "edm_skew"
    assert torch.equal(sample_times(kind, uniform.repeat(9), mean, std), t.repeat(9))


def test_the_named_experiment_is_skewed_to_the_data() -> None:
    train = resolved("experiment=cifar10").train
    t = sample_times(train.times, UNIFORM, train.time_mean, train.time_std)
    assert float(t.median()) == pytest.approx(1 / (1 + np.exp(-1.2)), abs=0.01)
