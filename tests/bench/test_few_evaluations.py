"""Measurements at few evaluations and few images: what they compute, on a random network."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.bench import noise, solvers
from pipeline.bench.sampling import Bench
from pipeline.scoring.scores import frechet
from tests.random_networks import save_network


@pytest.mark.slow
def test_distances_of_all_solvers_at_equal_evaluations(tmp_path: Path) -> None:
    weights = save_network(tmp_path / "weights.safetensors", channel_mult=[1], attention_at=[])
    bench = Bench(["experiment=tiny", f"weights={weights}"], torch.device("cpu"), images=2)
    exact = solvers.ends(bench, *solvers.EXACT)
    found = solvers.on_better_grids(bench, exact)
    values = {name: [solvers.rmse(one, exact)] for name, one in found.items()}
    assert len(values) == 2 * 6 and all(0 < value[0] < 1 for value in values.values())
    nearest = [solvers.nearest(values, budget, ("ab3",)) for budget in solvers.BUDGETS]
    assert nearest[1] < nearest[0] < solvers.nearest(values, 8, ("euler",))
    learned = solvers.learned_ends(bench, 8, tmp_path, "sample.fit_images=8")
    values |= {solvers.case(solvers.LEARNED, 8): [solvers.rmse(learned, exact)]}
    bars = solvers.bars(values, [2.0, 2.1])
    assert [bar["holds"] for bar in bars[2:]] == [True, False]


def test_one_image_that_ends_elsewhere_is_in_the_mean_and_not_in_the_median() -> None:
    exact = np.zeros((9, 3, 2, 2), np.float32)
    found = exact + np.array(4 * [1] + 4 * [2] + [30], np.float32).reshape(-1, 1, 1, 1)
    assert solvers.rmse(found, exact) == pytest.approx((4 + 16 + 900) ** 0.5 / 3)
    assert solvers.of_median_image(found, exact) == pytest.approx(2)


def test_frechet_of_few_images() -> None:
    rng = np.random.default_rng(0)
    one, two = rng.normal(size=(30, 60)), 1.2 * rng.normal(size=(20, 60)) + 0.5
    moments = [value for side in (one, two) for value in (side.mean(0), np.cov(side.T))]
    value = noise.few_frechet(torch.from_numpy(one), torch.from_numpy(two))
    assert value == pytest.approx(frechet(*moments), rel=1e-6)


def test_metrics_of_disjoint_subsets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise, "SIZE", 10)
    real = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    near, far = (noise.by_subset(real.flip(0) + shift, real) for shift in (0.0, 2.0))
    for metric in noise.METRICS:
        told = noise.compared(near[metric], far[metric])
        assert len(near[metric]) == 4 and told["difference_in_stds"] > 3
        assert told["mean"] < told["noisy_mean"] and told["std"] > 0
