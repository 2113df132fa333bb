"""AdamW's moments of a checkpoint, in the memory format of the network that goes on with them."""

import io
from typing import Any

import pytest
import torch
from torch import nn

from pipeline.training import sharding

FORMATS = (torch.contiguous_format, torch.channels_last)


def made(layout: torch.memory_format) -> tuple[nn.Conv2d, torch.optim.AdamW]:
    """A convolution in a memory format, and its optimiser."""
    torch.manual_seed(0)
    net = nn.Conv2d(4, 8, 3).to(memory_format=layout)  # type: ignore[call-overload]
    return net, torch.optim.AdamW(net.parameters(), lr=1e-2, fused=True)


def step(net: nn.Conv2d, optimizer: torch.optim.AdamW, seed: int) -> None:
    """A step by gradients that `seed` draws."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        gradient = torch.randn(parameter.shape, generator=generator)
        parameter.grad = torch.empty_like(parameter).copy_(gradient)
    optimizer.step()


def saved(state: dict[str, Any]) -> dict[str, Any]:
    """A state as it comes back from a checkpoint."""
    stream = io.BytesIO()
    torch.save(state, stream)
    stream.seek(0)
    loaded: dict[str, Any] = torch.load(stream, weights_only=True)
    return loaded


@pytest.mark.parametrize(("before", "after"), [FORMATS, FORMATS[::-1]])
def test_a_run_goes_on_in_another_memory_format(
    before: torch.memory_format, after: torch.memory_format
) -> None:
    # On a GPU weights lie with their channels last, on a CPU and under fsdp2 they do not
    whole, optimizer = made(before)
    step(whole, optimizer, 1)
    state, weights = saved(optimizer.state_dict()), saved(whole.state_dict())
    step(whole, optimizer, 2)

    other, resumed = made(after)
    other.load_state_dict(weights)
    sharding.load_optimizer(resumed, state)
    for parameter, moments in resumed.state.items():
        assert moments["exp_avg"].stride() == moments["exp_avg_sq"].stride() == parameter.stride()
        assert moments["step"] == 1
    step(other, resumed, 2)
    torch.testing.assert_close(other.weight, whole.weight)
