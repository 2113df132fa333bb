"""Leases, what the driver tells, the order of devices, and trainings that a signal ends."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from pipeline.base.errors import EXIT_RESUMABLE
from pipeline.base.processes import descendants
from pipeline.bench import record
from pipeline.bench.gpu_check.check import Check, Figure, NotApplicable
from pipeline.bench.gpu_check.networks import relative
from pipeline.compute import gpus
from pipeline.flow.made_up import made_up_pack
from pipeline.training.weights_file import load_weights

NO_DRIVER = "there is no driver"
PATIENCE = 120.0  # seconds that a process may take to start, and to save and leave
FILE = "weights.safetensors"
BATCH, STEPS = 12, {"cpu": 150, "cuda": 400}  # long enough for a signal to come in the middle
# Relative difference of the weights. A GPU adds in another order each time: on a CPU two passes a
# step instead of one made 2e-5 after 150 steps, 5e-5 after 300, 1.1e-4 after 600. Moments that are
# lost on the way make 5e-3.
BOUND = {"cpu": 1e-4, "cuda": 1e-3}
WORDS = (
    "experiment=tiny", "model.channel_mult=[1]", "model.attention_at=[]", "model.dropout=0.2",
    f"train.batch={BATCH}", "train.lr=1e-4", f"runtime.log_images={10 * BATCH}",
    f"runtime.checkpoint_images={30 * BATCH}", "runtime.progress_seconds=1000",
    "runtime.compile=false",
)  # fmt: skip


def require(*packages: str) -> None:
    """Raise NotApplicable if a package is missing."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise NotApplicable(f"the package {package} is not installed")


# --- the device ----------------------------------------------------------------------------------


def leases(device: torch.device) -> Figure:
    """A leased device cannot be leased again before it is free, then it can."""
    require("pynvml")
    from pipeline.launching.leases import lease, locked

    declared = {gpus.DECLARED: "0,1"} if device.type == "cpu" else {}
    with TemporaryDirectory() as folder:
        environment = {**os.environ, **declared, "PIPELINE_LEASE_DIR": folder}
        environment.pop("SLURM_JOB_ID", None)  # an allocation has locks of other names
        visible = gpus.visible(environment)
        with lease(1, environment) as leased:
            files = [Path(folder, name) for name in gpus.lock_names(leased.ids).values()]
            taken = sum(is_free(locked(file)) for file in files)
        free = sum(is_free(locked(file)) for file in files)
    if len(leased.ids) != 1 or leased.ids[0] not in visible or free != 1:
        raise ValueError(f"{leased.ids} of {visible} were leased, and {free} were free afterwards")
    return Figure(taken, 0, "devices leased twice", note=f"{len(visible)} visible")


def is_free(lock: AbstractContextManager[int | None]) -> bool:
    """Whether the lock of a device can be had."""
    with lock as descriptor:
        return descriptor is not None


def driver(device: torch.device) -> Figure:
    """Memory in use as the driver and the runtime tell it, while the device is busy."""
    require("pynvml")
    from pipeline.training.meter import gpu_state

    # Busy for a moment
    factor = torch.randn(4096, 4096, device=device)
    until = time.monotonic() + 1.5
    while time.monotonic() < until:
        factor = torch.tanh(factor @ factor)
        torch.cuda.synchronize(device)
    # The driver's figures
    state = gpu_state(device)
    free, total = torch.cuda.mem_get_info(device)
    gap = abs(torch.cuda.device_memory_used(device) - (total - free)) / total
    use, power = state["gpu_utilisation"], state["power_w"]
    if not use or not power:
        raise ValueError(f"a busy device has utilisation {use} and power {power}")
    return Figure(gap, 0.05, "of the memory", note=f"{use:.0%} busy, {power:.0f} W")


def order(device: torch.device) -> Figure:
    """The UUID of the device that torch calls the first, and of the first that is visible."""
    require("pynvml")
    first, uuids = gpus.visible()[0], gpus.device_ids()
    if "MIG" in first:
        raise NotApplicable("an instance of MIG has a separate UUID")
    wanted = uuids[int(first)] if first.isdigit() else first
    actual = str(torch.cuda.get_device_properties(device).uuid)
    differ = not actual.removeprefix("GPU-").startswith(wanted.removeprefix("GPU-"))
    return Figure(differ, 0, "devices", note=f"{len(uuids)} in this machine")


# --- trainings -----------------------------------------------------------------------------------


def start(words: Sequence[str], device: torch.device, out: Path, folder: str) -> subprocess.Popen:
    """A training of the pack in `folder`, with its output in `out`."""
    where = [f"train.images={STEPS[device.type] * BATCH}", f"runtime.device={device.type}"]
    where += [f"data.path={folder}/pack", f"out={out}"]
    command = [sys.executable, *(["-m", *words] if words else []), "-m", "pipeline.train"]
    out.mkdir(exist_ok=True)
    environment = {**os.environ, "PIPELINE_LEASE_DIR": f"{folder}/leases"}
    with (out / "log").open("a") as log:
        return subprocess.Popen(
            [*command, *WORDS, *where], cwd=record.ROOT, env=environment, stdout=log, stderr=log
        )


def ended(process: subprocess.Popen, out: Path, status: int) -> None:
    """Wait for a training; raises ValueError with its last line if it ends otherwise."""
    try:
        process.wait(PATIENCE)
    finally:
        process.kill()
    if process.returncode != status:
        lines = (out / "log").read_text().strip().splitlines() or [""]
        raise ValueError(f"the training ended with status {process.returncode}: {lines[-1][:150]}")


@cache
def uncut(device: str) -> dict[str, torch.Tensor]:
    """The weights of a training that nothing ends."""
    with TemporaryDirectory() as folder:
        write_pack(folder)
        out = Path(folder, "out")
        ended(start((), torch.device(device), out, folder), out, 0)
        return load_weights(out / FILE)


def write_pack(folder: str) -> None:
    """A pack of made-up images in folder/pack."""
    from pipeline.bench.loader import write_pack

    Path(folder, "pack").mkdir()
    write_pack(Path(folder, "pack"), made_up_pack(8, 2).images)


def checkpointed(process: subprocess.Popen, out: Path) -> None:
    """Return once a training has written a checkpoint; raises ValueError if it ends before."""
    until = time.monotonic() + PATIENCE
    while not list(out.glob("checkpoints/*/step-*.pt")):
        if process.poll() is not None or time.monotonic() > until:
            lines = (out / "log").read_text().strip().splitlines() or [""]
            raise ValueError(f"the training wrote no checkpoint: {lines[-1][:150]}")
        time.sleep(0.01)


def stopped(process: subprocess.Popen, number: int, status: int, out: Path) -> float:
    """Seconds in which a training leaves with `status`, and with all that it has started, after a
    signal that comes when there is a checkpoint.

    Raises ValueError if it ends otherwise, or leaves a process behind.
    """
    # A signal in its middle
    before = set(descendants())
    try:
        checkpointed(process, out)
        process.send_signal(number)
        began = time.monotonic()
        ended(process, out, status)
    finally:
        process.kill()
    # Nothing goes on
    seconds, left = time.monotonic() - began, set(descendants()) - before
    if left or (out / FILE).exists():
        raise ValueError(f"{len(left)} processes were left, or the training had ended before")
    return seconds


def goes_on(number: int, words: tuple[str, ...], status: int, device: torch.device) -> Figure:
    """A training that a signal ends with `status`, and the same command again."""
    require("tensorboard", "pynvml", "psutil")
    with TemporaryDirectory() as folder:
        write_pack(folder)
        out = Path(folder, "out")
        seconds = stopped(start(words, device, out, folder), number, status, out)
        ended(start((), device, out, folder), out, 0)
        ours, right = (as_row(w) for w in (load_weights(out / FILE), uncut(str(device))))
    note = f"left after {seconds:.1f} s"
    return Figure(relative(ours, right), BOUND[device.type], "relative", note=note)


def as_row(state: dict[str, torch.Tensor]) -> torch.Tensor:
    """All weights, float64 in one row."""
    return torch.cat([state[name].double().flatten() for name in sorted(state)])


LAUNCHER = ("pipeline.launch", "--gpus", "1", "--threads", "2", "launch.max_restarts=1", "--")
ROUNDS = "rounding of 1e-6 a step, which Adam carries on"
CHECKS = (
    Check("leases", leases, "one job per device"),
    Check("what the driver tells", driver, "others may allocate meanwhile", NO_DRIVER),
    Check("order of the devices", order, "by PCI bus, as leases count them", NO_DRIVER),
    Check(
        "SIGTERM under the launcher", partial(goes_on, signal.SIGTERM, LAUNCHER, EXIT_RESUMABLE),
        ROUNDS,
    ),
    Check("SIGKILL", partial(goes_on, signal.SIGKILL, (), -signal.SIGKILL), ROUNDS),
)  # fmt: skip
