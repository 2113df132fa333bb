"""The GPUs that this run may use: those of CUDA_VISIBLE_DEVICES, else all of the machine.

python -m pipeline.gpus        prints how many processes a job may have: GPUs, else CPU cores
"""

import os
from collections.abc import Mapping


def device_count() -> int:
    """NVIDIA GPUs of this machine, by NVML; 0 where there is no driver. Does not touch CUDA."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return 0
    try:
        return int(pynvml.nvmlDeviceGetCount())
    finally:
        pynvml.nvmlShutdown()


def visible(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Ids (indices or UUIDs) of the visible GPUs, in order, as CUDA reads them.

    Like CUDA, an index that does not exist ends the list.
    """
    count = device_count()
    named = environment.get("CUDA_VISIBLE_DEVICES")
    if named is None or count == 0:
        return [str(i) for i in range(count)]
    ids: list[str] = []
    for word in filter(None, (w.strip() for w in named.split(","))):
        if word.lstrip("-").isdigit() and not 0 <= int(word) < count:
            break
        ids.append(word)
    return ids


def cpu_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


def default_processes(environment: Mapping[str, str] = os.environ) -> int:
    """What `--resources gpu=` is by default: the visible GPUs; without any, the CPU cores."""
    return len(visible(environment)) or cpu_cores()


if __name__ == "__main__":
    print(default_processes())
