"""GPUs that the driver counts and nobody can use."""

import sys
from types import ModuleType

import pytest

from pipeline.compute import gpus


class NVMLError(Exception):
    """As pynvml has it."""


@pytest.mark.parametrize("asked", ["nvmlDeviceGetHandleByIndex", "nvmlDeviceGetUUID"])
def test_a_gpu_that_cannot_be_opened_is_passed_over(
    asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NVML counts GPUs that have failed, and those that a Slurm job has no right to open."""
    driver = ModuleType("pynvml")

    def answer(index: int) -> int:
        if index == 1:
            raise NVMLError("GPU is lost")
        return index

    functions = {
        "NVMLError": NVMLError,
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetCount": lambda: 3,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetUUID": lambda handle: f"GPU-{handle}",
    }
    for name, function in (functions | {asked: answer}).items():
        setattr(driver, name, function)
    monkeypatch.setitem(sys.modules, "pynvml", driver)

    uuids = gpus.device_ids()
    assert len(uuids) == 2 and uuids[-1].endswith("2")
    assert gpus.visible({}) == ["0", "1"]  # as CUDA counts them
    assert gpus.visible({"CUDA_VISIBLE_DEVICES": "0,1,2"}) == ["0", "1"]
