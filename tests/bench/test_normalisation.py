"""GroupNorm by channels against torch's."""

import pytest
import torch
from torch import nn

from pipeline.bench.gpu.normalisation import by_channels


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("channels", "groups"), [(8, 4), (32, 32), (96, 32)])
def test_values_and_gradients_are_those_of_torch(
    channels: int, groups: int, layout: torch.memory_format
) -> None:
    torch.manual_seed(0)
    norm = nn.GroupNorm(groups, channels).double()
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    x = (3 * torch.randn(2, channels, 5, 7, dtype=torch.float64) + 20).to(memory_format=layout)
    x.requires_grad_()
    inputs = (x, norm.weight, norm.bias)
    values = [norm(x), by_channels(norm, x)]
    torch.testing.assert_close(values[1], values[0], rtol=1e-10, atol=1e-10)
    seeds = torch.randn_like(x)
    gradients = [torch.autograd.grad(value, inputs, seeds) for value in values]
    for ours, theirs in zip(gradients[1], gradients[0], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_a_large_mean_loses_no_digits_and_bf16_becomes_float32() -> None:
    torch.manual_seed(0)
    norm, x = nn.GroupNorm(4, 8), torch.randn(2, 8, 16, 16) + 1000
    norm.requires_grad_(False)
    exact = norm.double()(x.double())
    norm.float()
    assert float((by_channels(norm, x) - exact).abs().max()) < 1e-3
    assert by_channels(norm, x.bfloat16()).dtype == torch.float32
