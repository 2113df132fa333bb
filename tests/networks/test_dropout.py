"""Dropout by position: the masks of an image, whatever else is in its batch."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from pipeline.compute import draws
from pipeline.networks.dropout import Dropout, mixed
from pipeline.networks.families import build
from tests.conftest import resolved


def keys_of(positions: range, seed: int = 0) -> Tensor:
    return draws.pairs(seed, draws.DROPOUT, torch.tensor(positions))


def layer(share: float, number: int = 0) -> Dropout:
    result = Dropout(share)
    result.number = number
    return result


@given(st.integers(0, 2**32 - 1))
def test_the_hash_is_lowbias32(word: int) -> None:
    expected = word ^ (word >> 16)
    expected = expected * 0x7FEB352D % 2**32
    expected ^= expected >> 15
    expected = expected * 0x846CA68B % 2**32
    expected ^= expected >> 16
    ours = mixed(torch.tensor([word]).to(torch.int32))
    assert ours.dtype == torch.int32 and int(ours) % 2**32 == expected


@pytest.mark.parametrize("share", [0.1, 0.3, 0.75])
def test_shares_and_means(share: float) -> None:
    """Of all values, of each image, and of each place over images: within 5 standard errors."""
    out = layer(share)(torch.ones(400, 4, 5, 10), keys_of(range(400)))
    dropped = (out == 0).double()
    for over, count in (((0, 1, 2, 3), 80_000), ((1, 2, 3), 200), ((0,), 400)):
        error = math.sqrt(share * (1 - share) / count)
        assert (dropped.mean(over) - share).abs().max() < 5 * error
    assert torch.allclose(out[out != 0], torch.tensor(1 / (1 - share)))


def test_masks_of_layers_images_seeds_and_neighbours_are_not_correlated() -> None:
    x = torch.ones(50, 8, 16, 16)
    masks = [layer(0.5, number)(x, keys_of(range(50))) for number in (0, 1, 2)]
    masks.append(layer(0.5)(x, keys_of(range(50, 100))))
    masks.append(layer(0.5)(x, keys_of(range(50), seed=1)))
    masks += [masks[0].roll(1, dim) for dim in (0, 1, 2, 3)]
    table = torch.corrcoef(torch.stack([mask.flatten() for mask in masks]))
    assert (table - torch.eye(len(masks))).abs().max() < 5 / math.sqrt(x.numel())


def test_an_image_has_its_masks_in_any_batch_and_layout() -> None:
    x = torch.randn(6, 4, 3, 5)
    whole = layer(0.5, 3)(x, keys_of(range(6)))
    for rows in (slice(0, 1), slice(2, 5)):
        assert torch.equal(layer(0.5, 3)(x[rows], keys_of(range(6))[rows]), whole[rows])
    last = x.to(memory_format=torch.channels_last)
    assert torch.equal(layer(0.5, 3)(last, keys_of(range(6))), whole)


@pytest.mark.slow
def test_compiled_the_masks_are_the_same() -> None:
    x, compiled = torch.randn(6, 4, 3, 5), torch.compile(layer(0.5, 3))
    zeros = compiled(x, keys_of(range(6))) == 0
    assert torch.equal(zeros, layer(0.5, 3)(x, keys_of(range(6))) == 0)


def test_nothing_is_dropped_out_of_training_and_torch_draws_without_keys() -> None:
    x = torch.randn(2, 4, 3, 3)
    assert torch.equal(layer(0.5).eval()(x, keys_of(range(2))), x)
    assert torch.equal(layer(0.0)(x, keys_of(range(2))), x)
    torch.manual_seed(0)
    expected = F.dropout(x, 0.5)
    torch.manual_seed(0)
    assert torch.equal(layer(0.5)(x, None), expected)


def test_the_layers_of_a_network_have_numbers_of_their_own() -> None:
    network = build(resolved("experiment=tiny", "model.dropout=0.5").model, 2)
    numbers = [module.number for module in network.modules() if isinstance(module, Dropout)]
    assert len(numbers) > 3 and numbers == list(range(len(numbers)))
