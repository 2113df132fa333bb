"""How well a rank uses its device: work done, waiting for data, memory, utilisation, power."""

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch

from pipeline.training.flops import mfu


class Clock:
    """Wall time of training steps times the ranks, over all runs."""

    def __init__(self, world: int) -> None:
        self.world, self.seconds = world, 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count the time of the block: that in which work is queued, or waited for."""
        began = time.monotonic()
        yield
        self.seconds += (time.monotonic() - began) * self.world


class Meter:
    """Rates, waiting, memory, utilisation and power of one rank's device."""

    def __init__(self, device: torch.device, flops: float, every: float) -> None:
        """`flops`: of one training image. The driver is asked at most every `every` seconds."""
        self.device, self.flops, self.every = device, flops, every
        self.name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
        self.asked = -float("inf")
        self.waited = 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time of the block as waiting for data; it waits for no device by itself."""
        began = time.monotonic()
        yield
        self.waited += time.monotonic() - began

    def numbers(self, images_per_s: float, seconds: float) -> dict[str, float | None]:
        """Of the `seconds` since the last call, in which this rank made `images_per_s` images/s.

        TFLOP/s and MFU (None: unknown peak) of this device; data_wait, the share of the time in
        which the training thread waited for batches; peak memory in GB, from the start on;
        utilisation (share) and power (W) from the driver, None if it was not asked or is silent.
        """
        # Waiting starts anew
        waited, self.waited = self.waited, 0.0
        return {
            "images_per_s_per_gpu": images_per_s,
            "tflops": images_per_s * self.flops / 1e12,
            "mfu": mfu(images_per_s, self.flops, self.name),
            "data_wait": waited / seconds,
            "peak_memory_gb": peak_memory(self.device) / 1e9,
            **self._hardware(),
        }

    def _hardware(self) -> dict[str, float | None]:
        now = time.monotonic()
        if self.device.type != "cuda" or now - self.asked < self.every:
            return {"gpu_utilisation": None, "power_w": None}
        self.asked = now
        return gpu_state(self.device)


def peak_memory(device: torch.device) -> int:
    """Most bytes that tensors took on a CUDA device, or that this process took in memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def gpu_state(device: torch.device) -> dict[str, float | None]:
    """Utilisation (share) and power (W) of a CUDA device by NVML; None if it does not tell.

    torch finds the device's handle, whatever CUDA_VISIBLE_DEVICES says.
    """
    import pynvml

    state: dict[str, float | None] = {"gpu_utilisation": None, "power_w": None}
    with suppress(pynvml.NVMLError, RuntimeError):
        state["gpu_utilisation"] = torch.cuda.utilization(device) / 100
    with suppress(pynvml.NVMLError, RuntimeError):
        state["power_w"] = torch.cuda.power_draw(device) / 1000  # mW
    return state
