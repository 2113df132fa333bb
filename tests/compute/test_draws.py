"""The counter-based generator: published vectors, independence of batching, distribution."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pipeline.compute import draws as draws_module
from pipeline.compute.draws import FLIP, SAMPLE_NOISE, TIME, TRAIN_NOISE, philox


# Known answers of philox4x32-10 published with Random123 (Salmon et al. 2011).
@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_known_answers(counter: list[int], key: list[int], answer: list[int]) -> None:
    words = philox(tuple(torch.tensor([c]) for c in counter), (key[0], key[1]))
    assert [int(w) for w in words] == answer


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 2**62), min_size=1, max_size=6), st.integers(-(2**63), 2**63 - 1))
def test_an_index_has_its_numbers_in_any_batch(indices: list[int], seed: int) -> None:
    together = draws_module.normal(seed, TRAIN_NOISE, torch.tensor(indices), (3, 3, 3))
    for row, index in zip(together, indices, strict=True):
        alone = draws_module.normal(seed, TRAIN_NOISE, torch.tensor([index]), (3, 3, 3))
        assert torch.equal(row, alone[0])


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(0, 5), st.integers(0, 2**62))
def test_turns_follow_each_other(count: int, turn: int, index: int) -> None:
    at, blocks = torch.tensor([index]), (count + 3) // 4
    part = draws_module.words(7, FLIP, at, count, turn)
    whole = draws_module.words(7, FLIP, at, 4 * blocks * (turn + 1))
    assert torch.equal(part, whole[:, :, turn * blocks :])
    with pytest.raises(ValueError, match="beyond the 2\\^32 blocks"):
        draws_module.words(7, FLIP, at, count, 2**32 // blocks)


def test_uniforms_in_double_and_single_are_uniform() -> None:
    index = torch.arange(300)
    first, second = draws_module.double_uniforms(3, TIME, index, (3, 5), turn=2)
    single = draws_module.uniforms(3, TIME, index, (3, 5))
    assert first.dtype == torch.float64 and single.dtype == torch.float32
    for values in (first, second, single):
        assert values.shape == (300, 3, 5) and values.min() > 0 and values.max() < 1
        assert stats.kstest(values.flatten().numpy(), "uniform").pvalue > 1e-3
        assert len(values.unique()) > 4490
    assert abs(np.corrcoef(first.flatten(), second.flatten())[0, 1]) < 0.06
    row, _ = draws_module.double_uniforms(3, TIME, index[7:8], (3, 5), turn=2)
    assert torch.equal(row[0], first[7])
    fine = first.flatten() * 2.0**30
    assert (fine != fine.floor()).all()  # bits beyond those of float32


def test_torch_draws_from_all_bits_of_a_seed() -> None:
    assert [draws_module.torch_seed(seed) for seed in (0, 7, 2**32 - 1)] == [0, 7, 2**32 - 1]
    seeds = [7 + (k << 32) for k in range(100)] + [7 + (1 << bit) for bit in range(32, 63)]
    folded = {draws_module.torch_seed(seed) for seed in seeds}
    assert len(folded) == len(set(seeds)) and max(folded) < 2**32


def test_streams_seeds_and_indices_differ() -> None:
    index = torch.arange(2)
    draws = [
        draws_module.uniform(seed, stream, index)
        for seed in (0, 1, 2**32)
        for stream in (TIME, FLIP, SAMPLE_NOISE)
    ]
    assert len({float(x) for draw in draws for x in draw}) == 18


def test_distributions() -> None:
    normal = draws_module.normal(0, SAMPLE_NOISE, torch.arange(500), (3, 8, 8)).flatten().numpy()
    assert stats.kstest(normal, "norm").pvalue > 0.01
    uniform = draws_module.uniform(0, TIME, torch.arange(50_000)).numpy()
    assert stats.kstest(uniform, "uniform").pvalue > 0.01
    assert uniform.min() > 0 and uniform.max() < 1


def test_neighbouring_images_are_uncorrelated() -> None:
    images = draws_module.normal(0, SAMPLE_NOISE, torch.arange(40), (3, 16, 16)).flatten(1)
    correlation = torch.corrcoef(images) - torch.eye(40)
    assert correlation.abs().max() < 0.17  # 4.7 standard deviations of 1/sqrt(768)
