"""GPUs that are too small for the weights, or for more than one image."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from pipeline.base.errors import OneRankError
from pipeline.compute import execution
from pipeline.compute.distributed import Ranks
from pipeline.flow.made_up import made_up
from pipeline.training import fitting, sharding
from tests.conftest import resolved

CPU = Ranks(0, 1, torch.device("cpu"))
OUT = torch.OutOfMemoryError


def measured(
    most: int, monkeypatch: pytest.MonkeyPatch, error: type[Exception] | Exception = OUT
) -> int:
    """The micro-batch for a device that has memory for `most` images at once, of 12 in all."""

    def rehearse(*arguments: object) -> None:
        if int(str(arguments[3])) > most:
            raise error

    config = resolved("experiment=tiny")
    workload = made_up(config, 10)
    monkeypatch.setattr(fitting, "rehearse", rehearse)
    monkeypatch.setattr(fitting, "free_memory", lambda device: 10**12)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 0)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 0)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 10**11)
    card = SimpleNamespace(total_memory=10**12)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    return fitting.measured(nn.Linear(1, 1), workload, "fp32", 12, CPU, sharded=False)


@pytest.mark.parametrize("most", [1, 2, 3, 12])
def test_the_micro_batch_is_what_runs(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert measured(most, monkeypatch) == most


def test_libraries_beside_torch_run_out_of_memory_too(monkeypatch: pytest.MonkeyPatch) -> None:
    triton = RuntimeError("Triton Error [CUDA]: out of memory")
    assert measured(3, monkeypatch, triton) == 3
    with pytest.raises(OneRankError, match="64 images at once do not fit on cpu: .*feature_batch"):
        with execution.enough_memory(64, "runtime.feature_batch", CPU.device):
            raise triton
    with pytest.raises(RuntimeError, match="illegal memory access"):
        measured(3, monkeypatch, RuntimeError("CUDA error: an illegal memory access"))


def test_a_gpu_too_small_for_one_image_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        OneRankError, match="not even a batch of one fits on cpu beside the weights"
    ):
        measured(0, monkeypatch)


def test_so_is_one_too_small_for_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def place(net: nn.Module, device: torch.device) -> nn.Module:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(execution, "place", place)
    with pytest.raises(OneRankError, match=r"on cpu beside the weights .*strategy=fsdp2.*larger"):
        sharding.spread([nn.Linear(1, 1)], CPU, sharded=False, blocks=())


def test_without_pythons_headers_nothing_is_compiled(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Triton and the compiler for CPUs build modules of Python."""
    device = torch.device("cpu")
    assert execution.compiles(device, True, loud=True)
    monkeypatch.setattr(execution.sysconfig, "get_path", lambda _: "/nowhere")
    assert not execution.compiles(device, True, loud=True)
    assert "torch.compile is off: no Python.h" in capsys.readouterr().out
