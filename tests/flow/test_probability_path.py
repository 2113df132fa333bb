"""The path, its velocity, the loss, and the average of weights."""

import copy

import pytest
import torch

from pipeline.flow import probability_path
from pipeline.training.ema import EMA


def test_the_target_is_the_derivative_of_the_path() -> None:
    x0, x1 = torch.randn(2, 4, 3, 5, 5, dtype=torch.float64)
    t = torch.rand(4, dtype=torch.float64)
    _, derivative = torch.func.jvp(
        lambda time: probability_path.interpolate(x0, x1, time), (t,), (torch.ones_like(t),)
    )
    torch.testing.assert_close(derivative, probability_path.target_velocity(x0, x1))


def test_the_path_starts_at_noise_and_ends_at_data() -> None:
    x0, x1 = torch.randn(2, 4, 3, 5, 5)
    assert torch.equal(probability_path.interpolate(x0, x1, torch.zeros(4)), x0)
    assert torch.equal(probability_path.interpolate(x0, x1, torch.ones(4)), x1)


def test_loss_is_zero_only_at_the_target() -> None:
    x0, x1 = torch.randn(2, 4, 3, 5, 5)
    assert probability_path.loss(x1 - x0, x0, x1) == 0
    assert probability_path.loss(x1 - x0 + 2, x0, x1) == pytest.approx(4, rel=1e-5)


def test_labels_are_dropped_one_by_one() -> None:
    labels = torch.tensor([3, 3, 3, 3])
    dropped = probability_path.drop_labels(labels, torch.tensor([0.1, 0.3, 0.19, 0.9]), 0.2, 10)
    assert dropped.tolist() == [10, 3, 10, 3]


def test_guidance() -> None:
    conditional, none = torch.randn(2, 4, 3, 2, 2)
    assert torch.equal(probability_path.guided(conditional, none, 0.0), none)
    torch.testing.assert_close(probability_path.guided(conditional, none, 1.0), conditional)
    torch.testing.assert_close(
        probability_path.guided(conditional, none, 1.2), 1.2 * conditional - 0.2 * none
    )


def test_average_halves_the_distance_in_a_halflife() -> None:
    net = torch.nn.Linear(3, 3)
    ema = EMA(net, halflife_images=640, rampup=0.0)
    start = copy.deepcopy(ema.net.weight)
    with torch.no_grad():
        net.weight += 1.0
    for step in range(10):
        ema.update(net.parameters(), (step + 1) * 64, 64)
    torch.testing.assert_close(ema.net.weight, start + 0.5)


def test_average_follows_quickly_at_first() -> None:
    ema = EMA(torch.nn.Linear(2, 2), halflife_images=1e6, rampup=0.05)
    assert ema.decay(64, 64) == pytest.approx(0.5 ** (1 / 0.05))
    assert ema.decay(10**9, 64) == pytest.approx(0.5 ** (64 / 1e6))
