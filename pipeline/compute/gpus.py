"""The GPUs that this run may use: those of CUDA_VISIBLE_DEVICES, else all of the machine.

python -m pipeline.compute.gpus    prints how many processes a job may have: GPUs, else CPU cores

PIPELINE_GPU_IDS=0,1,2,3 declares devices on a machine that has none, for tests and rehearsals:
jobs are leased these ids and compute on the CPU.
"""

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress

from pipeline.base.errors import UserError, run_main

DECLARED = "PIPELINE_GPU_IDS"


def device_ids() -> list[str]:
    """UUIDs of the NVIDIA GPUs of this machine in the order of their PCI bus ids, by NVML.

    An empty list if there is no driver. Does not touch CUDA. Like CUDA it passes over GPUs that
    NVML counts but cannot open: one that has failed, or that this process has no right to use.
    """
    import pynvml

    # Without a driver
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []

    # With a driver
    uuids = []
    try:
        for index in range(pynvml.nvmlDeviceGetCount()):
            with suppress(pynvml.NVMLError):
                handle = pynvml.nvmlDeviceGetHandleByIndex(index)
                uuids.append(str(pynvml.nvmlDeviceGetUUID(handle)))
    finally:
        pynvml.nvmlShutdown()
    return uuids


def device_count() -> int:
    """Number of NVIDIA GPUs of this machine."""
    return len(device_ids())


def declared(environment: Mapping[str, str] = os.environ) -> list[str]:
    """The ids of PIPELINE_GPU_IDS.

    Raises UserError if this machine has real GPUs, or if an id is malformed or comes twice.
    """
    # Only without real GPUs
    ids = [word.strip() for word in environment.get(DECLARED, "").split(",") if word.strip()]
    if ids and device_count():
        raise UserError(
            f"{DECLARED} declares devices for a machine without GPUs, and this one has "
            f"{device_count()}: unset it, and choose among them by CUDA_VISIBLE_DEVICES"
        )
    # Each named once
    if len(set(ids)) < len(ids) or not all(re.fullmatch(r"[\w.-]+", device) for device in ids):
        raise UserError(f"{DECLARED}={environment[DECLARED]} is not a list of different ids")
    return ids


def visible(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Ids (indices or UUIDs) of the visible GPUs, in order, as CUDA reads them.

    Like CUDA, an id that does not exist ends the list. Declared ones are visible unless
    CUDA_VISIBLE_DEVICES names some of them.
    """
    # All devices
    pretended = declared(environment)
    every = pretended or [str(i) for i in range(device_count())]
    named = environment.get("CUDA_VISIBLE_DEVICES")
    if named is None or not every:
        return every

    # The user's choice
    ids: list[str] = []
    for word in filter(None, (w.strip() for w in named.split(","))):
        if word not in every and (pretended or not is_uuid(word)):
            break
        ids.append(word)
    return ids


def is_uuid(word: str) -> bool:
    """Whether a word names a GPU of this machine, or a MIG instance, by its UUID or its start."""
    uuids = device_ids()
    is_known = not uuids or any(uuid.startswith(word) for uuid in uuids)
    return word.startswith("MIG-") or (word.startswith("GPU-") and is_known)


def said_by(environment: Mapping[str, str] = os.environ) -> str:
    """The variable that says which GPUs are visible, for messages."""
    named = environment.get("CUDA_VISIBLE_DEVICES", "not set")
    if DECLARED in environment:
        return f"{DECLARED}={environment[DECLARED]}, CUDA_VISIBLE_DEVICES={named}"
    return f"CUDA_VISIBLE_DEVICES={named}"


def lock_names(ids: Sequence[str]) -> dict[str, str]:
    """For each of some visible ids a name that is the same however the device is called.

    An index counts in the order of PCI bus ids, as jobs are told to; a UUID may be cut short.
    """
    # Names by UUID
    uuids = device_ids()
    names = {}
    for device in ids:
        is_index = device.isdigit() and int(device) < len(uuids)
        whole = uuids[int(device)] if is_index else device
        whole = next((uuid for uuid in uuids if uuid.startswith(whole)), whole)
        names[device] = re.sub(r"[^\w.-]", "_", whole)
    return names


def cpu_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


def default_processes(environment: Mapping[str, str] = os.environ) -> int:
    """Default of `--resources gpu=`: the number of visible GPUs; without any, of CPU cores."""
    return len(visible(environment)) or cpu_cores()


def processes(num_gpus: int, device: str, visible: list[str]) -> int:
    """Number of ranks of a job that may take `num_gpus` GPUs.

    Without a GPU the ranks share the CPU cores: at most one per core, and a power of two if that
    is fewer than wanted. Raises UserError if some GPUs are visible but fewer than wanted, or they
    are MIG instances, of which a job can use only one.
    """
    # On GPUs
    if visible and device != "cpu":
        if num_gpus > len(visible):
            raise UserError(
                f"{num_gpus} GPUs are asked for but {len(visible)} visible "
                f"({said_by()}): "
                f"pass --resources gpu={len(visible)} or make more devices visible"
            )
        if num_gpus > 1 and any(device.startswith("MIG-") for device in visible):
            raise UserError(
                f"{num_gpus} GPUs are asked for, but a job can use only one MIG instance "
                f"({said_by()}): give 1 in runtime.gpus for its step"
            )
        return max(1, num_gpus)

    # On the CPU
    if device == "cuda":
        raise UserError("runtime.device=cuda but no GPU is visible: use runtime.device=auto")
    cores = cpu_cores()
    return max(1, num_gpus if num_gpus <= cores else 1 << (cores.bit_length() - 1))


def check_torch(visible: list[str], device: str) -> None:
    """Raise UserError if real GPUs are visible but this build of torch cannot use them.

    `device`: runtime.device.
    """
    if not visible or device == "cpu" or declared():
        return
    import torch  # takes seconds, and is needed on machines with GPUs only

    if torch.cuda.device_count() == 0:
        raise UserError(
            f"GPUs {','.join(visible)} are visible but torch {torch.__version__} cannot use them "
            "(a CPU build, or a driver that is too old for it): install a build for this driver, "
            "or give runtime.device=cpu"
        )


def main(argv: list[str]) -> None:
    """Entry point; takes no arguments."""
    print(default_processes())


if __name__ == "__main__":
    run_main(main)
