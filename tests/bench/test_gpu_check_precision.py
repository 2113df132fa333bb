"""The bounds of float32 let a GPU's faster convolutions pass, and TF32 not."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.bench.gpu_check import networks, sampling

CPU = torch.device("cpu")


def changed(monkeypatch: pytest.MonkeyPatch, change: Callable[[Tensor], Tensor]) -> None:
    """Have `change` applied to the float32 inputs of convolutions and linear layers."""

    class Changed(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return change(x)

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            return gradient

    def calling(plain: Callable[..., Tensor], x: Tensor, *rest: Any) -> Tensor:
        return plain(Changed.apply(x) if x.dtype == torch.float32 else x, *rest)

    for name in ("conv2d", "linear"):
        monkeypatch.setattr(F, name, partial(calling, getattr(F, name)))


def tf32(x: Tensor) -> Tensor:
    """Rounded to the 10 bits of TF32's mantissa."""
    return x.contiguous().view(torch.int32).add(2**12).bitwise_and(-(2**13)).view(torch.float32)


@pytest.mark.parametrize("name", ["imagenet", "cifar"])
def test_fast_convolutions_pass_and_tf32_does_not(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    networks.exact(name)
    measure = partial(networks.agrees, name, "fp32", False)
    generator = torch.Generator().manual_seed(0)
    with monkeypatch.context() as patch:
        changed(patch, lambda x: x + 1e-5 * x.std() * torch.randn(x.shape, generator=generator))
        assert measure(CPU).value > 5e-5 and measure(CPU).holds
    changed(monkeypatch, tf32)
    assert measure(CPU).value > 1e-3 and not measure(CPU).holds


@pytest.mark.slow
def test_samples_in_tf32_instead_of_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = sampling.images
    first = iter([True, False])

    def images(*args: Any) -> Any:
        with monkeypatch.context() as patch:
            if next(first):
                changed(patch, tf32)
            return plain(*args)

    monkeypatch.setattr(sampling, "images", images)
    figure = sampling.as_on_cpu("heun", CPU)
    assert sampling.FLIPS_ON_A_GRID < figure.value < sampling.FLIPS and not figure.holds
