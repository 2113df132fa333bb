"""Counted work against arithmetic by hand; peaks of named devices."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pipeline import train
from pipeline.flow.made_up import made_up
from pipeline.networks.families import FAMILIES
from pipeline.networks.unet import Attention, UNet
from pipeline.training import flops
from pipeline.training.workload import Workload
from tests.concept.documents import TWO_TOWER, WORDS, made_pack
from tests.conftest import resolved


def by_hand(net: nn.Module, size: int) -> int:
    """Operations of one forward pass: 2 for each multiply-add of a convolution or linear layer."""
    total = 0

    def add(module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.Conv2d):
            total += 2 * output.numel() * module.in_channels * module.kernel_size[0] ** 2
        elif isinstance(module, nn.Linear):
            total += 2 * output.numel() * module.in_features
        elif isinstance(module, Attention):  # q k and (q k) v: pixels² times channels each
            total += 2 * 2 * (output.shape[2] * output.shape[3]) ** 2 * output.shape[1]

    for module in net.modules():
        module.register_forward_hook(add)
    net(torch.zeros(1, 3, size, size), torch.zeros(1), torch.zeros(1, dtype=torch.int64))
    return total


def test_a_convolution_and_a_linear_layer() -> None:
    net = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.Flatten(), nn.Linear(5 * 4 * 4, 7))
    with flops.Counter() as counter:
        net(torch.zeros(1, 3, 4, 4))
    assert counter.multiply_adds == 4 * 4 * 5 * 3 * 9 + 5 * 4 * 4 * 7


def test_arguments_by_name() -> None:
    x, weight = torch.zeros(4, 3), torch.zeros(5, 3)
    with flops.Counter() as counter:
        nn.functional.linear(input=x, weight=weight)
        nn.functional.scaled_dot_product_attention(query=x, key=weight, value=weight)
    assert counter.multiply_adds == 4 * 3 * 5 + 4 * 5 * (3 + 3)


@pytest.mark.parametrize("name", ["tiny", "smoke", "cifar10", "imagenet"])
def test_the_network_by_hand(name: str) -> None:
    config = resolved(f"experiment={name}")
    with torch.device("meta"):
        expected = 3 * by_hand(UNet(config.model, 10), config.data.resolution)
    assert flops.training_flops(made_up(config, 10)) == expected


def torchs(workload: Workload) -> int:
    """training_flops by torch's counter, which knows no network."""
    meta = torch.device("meta")
    with meta, torch.no_grad(), FlopCounterMode(display=False) as counter:
        workload.loss(workload.build().eval(), workload.zeros(1, meta))
    return 3 * int(counter.get_total_flops())


EXPERIMENTS = {"unet": "tiny", "edm2": "edm2_smoke", "discrete_unet": "discrete_smoke"}


@pytest.mark.parametrize("family", FAMILIES)
def test_torchs_counter_counts_the_same(family: str) -> None:
    workload = made_up(resolved(f"experiment={EXPERIMENTS[family]}"), 10)
    assert flops.training_flops(workload) == torchs(workload) > 0


@pytest.mark.parametrize("model", [(), TWO_TOWER], ids=["lcm", "two_tower"])
def test_of_documents_too(
    model: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_pack(tmp_path / "pack", monkeypatch)
    words = [*WORDS, *model, f"data.path={tmp_path}/pack", f"out={tmp_path}/out"]
    workload = train.prepare(words, 1).workload
    assert flops.training_flops(workload) == torchs(workload) > 0


def test_peaks_by_name() -> None:
    names = {
        "NVIDIA H100 80GB HBM3": 989.0,
        "NVIDIA H100 PCIe": 756.0,
        "NVIDIA H200": 989.0,
        "NVIDIA A100-SXM4-80GB": 312.0,
        "Tesla V100-SXM2-16GB": 125.0,
        "NVIDIA L40S": 362.0,
        "NVIDIA GeForce RTX 4090": 165.0,
        "NVIDIA B200": 2250.0,
    }
    assert {name: flops.peak(name) for name in names} == names


@pytest.mark.parametrize(
    "name", ["CPU", "NVIDIA A100-SXM4-40GB MIG 1g.5gb", "NVIDIA A1000", "NVIDIA GeForce RTX 5099"]
)
def test_no_peak_no_utilisation(name: str) -> None:
    assert flops.peak(name) is None
    assert flops.mfu(100.0, 1e12, name) is None


def test_utilisation_is_work_over_peak() -> None:
    assert flops.mfu(312.0, 0.5e12, "NVIDIA A100-SXM4-80GB") == pytest.approx(0.5)
