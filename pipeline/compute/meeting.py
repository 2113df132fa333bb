"""The meeting of ranks that no agent has started and watches: srun with several tasks, or by hand.

Rank 0 waits for the others, says for how many, and gives up after a while; the others wait for
rank 0, whose checks of the data and the checkpoints may take minutes.
"""

import os
import socket
import time
from datetime import timedelta

import torch.distributed as dist

from pipeline.base.errors import OneRankError
from pipeline.base.processes import LAUNCHED

QUIET = 5.0  # seconds of waiting without a word
FIRST_RANK = 3600.0  # seconds until rank 0 must have come
POLL = 0.1


def is_watched() -> bool:
    """Whether torchrun or a launcher of this project has started this rank, and sees it end."""
    return "TORCHELASTIC_RUN_ID" in os.environ or LAUNCHED in os.environ


def meet(rank: int, world: int, join_seconds: float) -> dist.Store:
    """The store of `world` ranks at MASTER_ADDR:MASTER_PORT, once all have come.

    Raises OneRankError if the others do not come in time, or another job meets there.
    """
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    if rank > 0:
        wait_for_first(host, port)
    try:
        hour = timedelta(seconds=FIRST_RANK)
        store = dist.TCPStore(host, port, world, rank == 0, hour, wait_for_workers=False)
    except dist.DistNetworkError as error:
        raise OneRankError(
            f"rank {rank} cannot use {host}:{port} ({str(error).splitlines()[0][:80]}), where "
            "perhaps another job meets: give this one another MASTER_PORT on all ranks"
        ) from error
    if store.add(f"rank {rank}", 1) > 1:
        raise OneRankError(
            f"a second rank {rank} came to {host}:{port}, where another job meets: give each job "
            "another MASTER_PORT"
        )
    store.add("ranks", 1)
    if rank == 0:
        wait_for_others(store, world, f"{host}:{port}", join_seconds)
    return store


def wait_for_first(host: str, port: int) -> None:
    """Return when rank 0 listens; raises OneRankError if it never does."""
    start, silent = time.monotonic(), True
    while not listens(host, port):
        waited = time.monotonic() - start
        if silent and waited > QUIET:
            print(f"waiting for rank 0 at {host}:{port}", flush=True)
            silent = False
        if waited > FIRST_RANK:
            raise OneRankError(f"rank 0 did not come to {host}:{port}: start it, too")
        time.sleep(POLL)


def listens(host: str, port: int) -> bool:
    """Whether something listens at a port."""
    try:
        socket.create_connection((host, port), timeout=QUIET).close()
    except OSError:
        return False
    return True


def wait_for_others(store: dist.Store, world: int, place: str, join_seconds: float) -> None:
    """Return when all ranks have come to `store`; raises OneRankError after `join_seconds`."""
    start, silent = time.monotonic(), True
    while missing := world - int(store.add("ranks", 0)):
        waited = time.monotonic() - start
        if silent and waited > min(QUIET, join_seconds / 2):
            print(f"waiting for {missing} more {named(missing)} at {place}", flush=True)
            silent = False
        if waited > join_seconds:
            raise OneRankError(
                f"{missing} of {world} {named(world)} did not come to {place} within "
                f"{join_seconds:g} s: start the same command on all of them{for_one_task()}"
            )
        time.sleep(POLL)


def named(count: int) -> str:
    """So many ranks, in words."""
    plural = "s" if count > 1 else ""
    return f"task{plural} of the step" if "SLURM_STEP_NUM_TASKS" in os.environ else f"rank{plural}"


def for_one_task() -> str:
    """The other remedy, for the shell of one of several tasks of a Slurm step."""
    if "SLURM_STEP_NUM_TASKS" not in os.environ:
        return ""
    return " (srun does), or for one process alone set SLURM_STEP_NUM_TASKS=1"
