"""Each kind of check of a GPU fails if a fault is planted."""

import itertools
import signal
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.base.errors import OneRankError
from pipeline.bench.gpu_check import (
    attention,
    memory,
    networks,
    numbers,
    processes,
    sampling,
    scoring,
    sharding,
    workloads,
)
from pipeline.bench.gpu_check.check import (
    FAILED,
    NOT_APPLICABLE,
    Check,
    Figure,
    NotApplicable,
    Outcome,
    run_check,
)
from pipeline.compute import draws, execution
from pipeline.data.reader import Resident
from pipeline.launching import leases
from pipeline.networks import dropout
from pipeline.scoring import extractors, keepers

CPU = torch.device("cpu")


def failed(measure: Callable[[torch.device], Figure]) -> Outcome:
    """The outcome of a check, which fails."""
    outcome = run_check(Check("planted", measure, ""), CPU)
    assert outcome.state == FAILED and outcome.text, outcome
    return outcome


@pytest.mark.parametrize(
    ("stream", "measure"),
    [
        ("TRAIN_NOISE", numbers.normals),
        ("TRAIN_NOISE", numbers.floats),
        ("SAMPLE_NOISE", numbers.normals),
        ("TIME", numbers.floats),
        ("FLIP", numbers.order),
        ("LABEL_DROPOUT", numbers.order),
        ("DROPOUT", numbers.masks),
        ("DROPOUT", numbers.order),
    ],
)
def test_a_wrong_stream(
    monkeypatch: pytest.MonkeyPatch, stream: str, measure: Callable[[torch.device], Figure]
) -> None:
    monkeypatch.setattr(draws, stream, 9)
    failed(measure)


def test_wrong_integers(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = dropout.shifted
    monkeypatch.setattr(dropout, "shifted", lambda word, count: word >> count)  # the sign comes in
    failed(numbers.masks)
    monkeypatch.setattr(dropout, "shifted", plain)
    monkeypatch.setattr(draws, "_ROUNDS", 9)
    failed(numbers.integers)


def test_float32_where_times_want_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tensor, "double", lambda value: value)
    failed(partial(numbers.times, "logit_normal"))


def test_a_pack_that_is_copied_one_row_off(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Resident.__init__

    def shifted(self: Resident, *args: Any) -> None:
        plain(self, *args)
        self.images = self.images.roll(1, 0)

    monkeypatch.setattr(Resident, "__init__", shifted)
    failed(numbers.copied)


@pytest.mark.slow
def test_another_precision_than_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    networks.exact("imagenet")
    for asked, used in (("fp32", "bf16"), ("fp32", "fp16"), ("bf16", "fp32"), ("fp16", "fp32")):
        with monkeypatch.context() as patch:
            plain = execution.autocast
            patch.setattr(execution, "autocast", lambda _, d, u=used, p=plain: p(u, d))
            failed(partial(networks.agrees, "imagenet", asked, False))
    with monkeypatch.context() as patch:
        patch.setattr(execution, "autocast", lambda _, d: plain("bf16", d))
        failed(partial(networks.reaches_oracle, "imagenet"))


@pytest.mark.parametrize("name", ["imagenet", "cifar"])
def test_a_dropped_gradient(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    networks.exact(name)
    plain = networks.Fixture.network

    def dropping(self: networks.Fixture) -> nn.Module:
        net = plain(self)
        net.stem.bias.register_hook(torch.zeros_like)
        return net

    monkeypatch.setattr(networks.Fixture, "network", dropping)
    outcome = failed(partial(networks.agrees, name, "fp32", False))
    assert "gradient of stem.bias" in outcome.text


def test_attention_of_another_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = F.scaled_dot_product_attention

    def scaled(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return plain(q if q.dtype == torch.float64 else 0.9 * q, k, v)

    monkeypatch.setattr(F, "scaled_dot_product_attention", scaled)
    for precision in ("fp32", "bf16"):
        failed(partial(attention.agrees, "math", precision))


def test_a_backend_that_is_not_there() -> None:
    with pytest.raises(NotApplicable, match="cudnn attention does not take"):
        attention.agrees("cudnn", "fp32", CPU)


@pytest.mark.usefixtures("small")
def test_shards_whose_gradient_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = sharding.sharding._shard

    def dropping(net: nn.Module, *rest: Any) -> None:
        net.get_parameter("stem.weight").requires_grad_(False)
        plain(net, *rest)

    monkeypatch.setattr(sharding.sharding, "_shard", dropping)
    failed(partial(sharding.fsdp2, False))


# --- memory --------------------------------------------------------------------------------------


def test_a_micro_batch_that_is_too_small_is_noticed() -> None:
    assert memory.next_size(128, 1024) == 256 and memory.next_size(1024, 1024) is None
    assert memory.next_size(12, 48) == 16
    assert memory.verdict(1024, None, None).holds
    assert memory.verdict(128, 256, None).holds  # does not train
    assert memory.verdict(128, 256, 0.95).holds  # no room for fragments
    assert not memory.verdict(128, 256, 0.6).holds


def test_an_error_that_does_not_name_the_key_is_noticed() -> None:
    def attempt() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    assert memory.sentence(attempt, CPU).holds

    def other() -> None:
        raise OneRankError("it does not fit")

    failed(lambda device: memory.sentence(other, device))
    with pytest.raises(NotApplicable):
        memory.sentence(lambda: None, CPU)


# --- sampling and scoring ------------------------------------------------------------------------


@pytest.mark.usefixtures("small")
def test_noise_by_the_place_in_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = draws.normal
    monkeypatch.setattr(
        draws, "normal", lambda s, k, index, shape: plain(s, k, torch.arange(len(index)), shape)
    )
    failed(partial(sampling.batch_sizes, "euler"))


@pytest.mark.usefixtures("small")
def test_weights_that_a_device_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, calls = sampling.network.build, itertools.count()

    def rounding(*args: Any) -> tuple[nn.Module, None]:
        net, guide = plain(*args)
        return (net.bfloat16().float() if next(calls) == 0 else net), guide

    monkeypatch.setattr(sampling.network, "build", rounding)
    failed(partial(sampling.as_on_cpu, "heun"))


@pytest.mark.usefixtures("small")
def test_samples_in_another_precision_than_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution, "autocast", lambda *_: nullcontext())
    failed(partial(sampling.rounded, "bf16", 4.0))


def test_features_in_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, calls = extractors.place, itertools.count()

    def rounding(*args: Any) -> nn.Module:
        net = plain(*args)
        return net.bfloat16().float() if next(calls) == 0 else net

    monkeypatch.setattr(extractors, "place", rounding)
    failed(partial(scoring.features, "efficientnet-lite0"))


def test_scoring_turns_tf32_off() -> None:
    try:
        assert scoring.features("efficientnet-lite0", CPU).holds
        assert not torch.backends.cuda.matmul.allow_tf32
        assert not torch.backends.cudnn.allow_tf32
    finally:
        torch.backends.cudnn.allow_tf32 = True


def test_sums_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = keepers.Moments.update
    monkeypatch.setattr(
        keepers.Moments, "update", lambda self, x: plain(self, x.bfloat16().float())
    )
    failed(scoring.sums)


# --- processes -----------------------------------------------------------------------------------


def test_a_lock_that_locks_nobody_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "take_lock", lambda *_, **__: True)
    failed(processes.leases)


@pytest.mark.slow
def test_a_training_that_does_not_save_on_a_signal() -> None:
    killed = partial(processes.goes_on, signal.SIGKILL, (), 75)
    assert "ended with status -9" in failed(killed).text


def test_a_missing_package_is_not_applicable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes.importlib.util, "find_spec", lambda name: None)
    for check in processes.CHECKS:
        if not check.not_on_cpu:
            outcome = run_check(check, CPU)
            assert outcome.state == NOT_APPLICABLE and "is not installed" in outcome.text


@pytest.mark.parametrize(
    ("name", "layer"),
    [("tokens", nn.GroupNorm), ("documents", nn.RMSNorm), ("noisy documents", nn.RMSNorm)],
)
def test_a_layer_that_is_off_in_other_workloads(
    monkeypatch: pytest.MonkeyPatch, name: str, layer: type[nn.Module]
) -> None:
    workloads.exact(name)
    plain = layer.forward
    monkeypatch.setattr(layer, "forward", lambda self, x: plain(self, x) * 1.001)
    failed(partial(workloads.agrees, name, "fp32"))


def test_jumps_by_other_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = itertools.count(100)
    plain = sampling.images

    def other(*args: Any) -> Any:
        monkeypatch.setattr(draws, "SAMPLE_TOKENS", next(streams))
        return plain(*args)

    monkeypatch.setattr(sampling, "images", other)
    failed(workloads.sampled)
