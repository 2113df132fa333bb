"""GPUs that the driver counts and nobody can use."""

import os
import subprocess
import sys
from types import ModuleType

import pytest

from pipeline.base.errors import UserError
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


def test_a_job_has_one_mig_instance_at_most() -> None:
    """CUDA shows a process the first of several, so that the others' ranks have none."""
    assert gpus.processes(1, "auto", ["MIG-1a", "MIG-2b"]) == 1
    with pytest.raises(UserError, match="2 GPUs are asked for, but a job can use only one MIG"):
        gpus.processes(2, "auto", ["MIG-1a", "MIG-2b"])
    assert gpus.processes(2, "cpu", ["MIG-1a", "MIG-2b"]) >= 1


def test_the_default_number_of_processes_is_told_or_why_there_is_none() -> None:
    words = [sys.executable, "-m", "pipeline.compute.gpus"]
    for ids, status, printed in (("0,1,2", 0, "3\n"), ("0,0", 2, "")):
        environment = os.environ | {"PIPELINE_GPU_IDS": ids}
        done = subprocess.run(words, env=environment, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (status, printed)
    assert done.stderr == "error: PIPELINE_GPU_IDS=0,0 is not a list of different ids\n"
