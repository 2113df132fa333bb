"""Storing averages makes no copy of the network: the memory that a snapshot takes."""

import tracemalloc
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from pipeline.networks import families
from pipeline.training import snapshots
from pipeline.training.ema import PowerAverage
from pipeline.training.weights_file import WeightsAbout
from tests.conftest import resolved
from tests.training.allocations import most_allocated

WIDTHS = (0.05, 0.10)
LAYERS, SIDE = 12, 256  # linear layers without bias, SIDE x SIDE weights of 4 bytes
LAYER = 4 * SIDE**2


def peak_of_storing(averages: list[PowerAverage], folder: Path, precision: str) -> int:
    """Bytes beyond those before: the most of tensors, and the most of other objects.

    Their sum bounds the most of both together.
    """
    about = WeightsAbout(config={}, record={})
    tracemalloc.start()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as measured:
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        for average in averages:
            path = folder / str(average.width)
            snapshots.save(path, average.net, precision, about, keep=True)
        objects = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    return most_allocated(measured) + objects


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_two_float32_averages_are_stored_in_the_memory_of_less_than_two_layers(
    tmp_path: Path, precision: str
) -> None:
    net = nn.Sequential(*(nn.Linear(SIDE, SIDE, bias=False) for _ in range(LAYERS)))
    averages = [PowerAverage(net, width) for width in WIDTHS]
    assert all(p.dtype == torch.float32 for one in averages for p in one.net.parameters())
    peak = peak_of_storing(averages, tmp_path, precision)
    files = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert files > 2 * LAYERS * LAYER * (0.5 if precision == "fp16" else 1)
    assert LAYER / 2 < peak < 2 * LAYER  # fp16: one that is rounded, the one before, its bytes


def test_a_layer_of_edm2_s_is_a_small_part_of_its_weights() -> None:
    """The figures in docs/edm2.md."""
    with torch.device("meta"):
        net = families.build(resolved("experiment=edm2_s", "data.source=train").model, 1000)
    sizes = [p.numel() * 4 for p in net.parameters()]
    assert round(max(sizes) / 1e6) == 42
    assert round(sum(sizes) / 1e9, 1) == 1.1
