"""The checks of training steps on a GPU fail if a fault is planted in the trainer."""

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from pipeline.bench.gpu_check import training
from pipeline.bench.gpu_check.check import OK, Check, Figure, run_check
from pipeline.training import trainer as trainers
from pipeline.training.trainer import Trainer
from tests.bench.test_gpu_check_faults import CPU, failed


class Planted:
    """Faults of trainers."""

    @staticmethod
    def drop_a_gradient(patch: pytest.MonkeyPatch) -> None:
        plain = Trainer._clip

        def clip(self: Trainer) -> None:
            self.net.get_parameter("stem.weight").grad.zero_()
            plain(self)

        patch.setattr(Trainer, "_clip", clip)

    @staticmethod
    def forget_the_passes(patch: pytest.MonkeyPatch) -> None:
        plain = Trainer._accumulate
        patch.setattr(Trainer, "_accumulate", lambda self, index, passes: plain(self, index, 1))

    @staticmethod
    def see_images_twice(patch: pytest.MonkeyPatch) -> None:
        plain = trainers.share
        patch.setattr(trainers, "share", lambda n, index, *rest: plain(n, 0, *rest))

    @staticmethod
    def lose_moments(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(trainers.sharding, "load_optimizer", lambda *_: None)

    @staticmethod
    def lose_an_average(patch: pytest.MonkeyPatch) -> None:
        plain = Trainer.load_state

        def load(self: Trainer, state: dict[str, Any]) -> None:
            plain(self, {**state, "averages": [state["net"] for _ in state["averages"]]})

        patch.setattr(Trainer, "load_state", load)

    @staticmethod
    def step_on_infinities(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(torch.amp.GradScaler, "step", lambda self, optimizer: optimizer.step())

    @staticmethod
    def keep_the_scale(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(torch.amp.GradScaler, "update", lambda self: None)


@pytest.mark.slow
@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("fault", "measure"),
    [
        (Planted.drop_a_gradient, partial(training.steps, "fp32", False, 1e-4)),
        (Planted.forget_the_passes, training.accumulated),
        (Planted.see_images_twice, training.accumulated),
        (Planted.lose_moments, partial(training.resumed, False)),
        (Planted.lose_moments, partial(training.resumed, True)),
        (Planted.lose_an_average, partial(training.resumed, True)),
        (Planted.lose_an_average, training.crossing),
        (Planted.lose_moments, training.crossing),
        (Planted.step_on_infinities, training.scaler_skips),
        (Planted.keep_the_scale, training.scaler_skips),
    ],
)
def test_a_fault_of_the_trainer(
    monkeypatch: pytest.MonkeyPatch,
    fault: Callable[[pytest.MonkeyPatch], None],
    measure: Callable[[torch.device], Figure],
) -> None:
    training.plain_losses()
    fault(monkeypatch)
    failed(measure)


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_sums_in_another_order_are_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """As kernels add that are not deterministic: the resumed trainers take two passes a step."""
    plain, made = training.trainer, itertools.count()

    def trainer(device: torch.device, folder: str, *words: str) -> Trainer:
        passes = 2 if next(made) else 1
        return plain(device, folder, *words, f"runtime.micro_batch={training.BATCH // passes}")

    monkeypatch.setattr(training, "trainer", trainer)
    outcome = run_check(Check("resumed", partial(training.resumed, False), ""), CPU)
    assert outcome.state == OK and outcome.value, outcome
