"""Leases of GPUs: jobs that run beside each other on one machine never share a device.

Snakemake counts GPUs and hands out no ids; leases do, by one file lock per device. A lease ends
with the last process that holds its descriptors, however that ends, and it holds between any
workflows of any users, who all lock the same files in FOLDER (PIPELINE_LEASE_DIR names another).
A waiter first takes the queue locks of all devices that it could use, in a fixed order, so that
one job at a time collects among them and a large one is not starved by small ones; jobs whose
devices are others do not wait for each other. Ranks that do not inherit the descriptors, those of
submitit, share a lock beside each (RANKS): a device is not free while they still save.
"""

import os
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.base.errors import UserError
from pipeline.base.locks import is_still, take_lock
from pipeline.compute import gpus

FOLDER = Path("/tmp/pipeline-gpu-leases")  # shared by all users of the machine
POLL = 0.1  # seconds between two looks at busy devices
RANKS = ".ranks"  # ends the name of the lock that ranks share


@dataclass(frozen=True)
class Lease:
    """Devices of this job alone, and the descriptors whose life is the lease's."""

    # The devices
    ids: list[str]  # as CUDA_VISIBLE_DEVICES takes them
    # Their locks
    descriptors: tuple[int, ...]
    rank_locks: tuple[str, ...] = ()  # for `held_by_rank`, one per device


@contextmanager
def lease(count: int, environment: Mapping[str, str] = os.environ) -> Iterator[Lease]:
    """`count` of the devices that this run may use, as soon as they are free.

    Inside a Slurm allocation they are the scheduler's, leased among the jobs of that allocation
    alone. Raises UserError if the run may use fewer than `count`, or names one twice.
    """
    # As many as asked
    ids = gpus.visible(environment)
    if count > len(ids):
        raise UserError(
            f"{count} GPUs are asked for but {len(ids)} visible "
            f"({gpus.said_by(environment)}): pass --resources gpu={len(ids)} or make more visible"
        )

    # Nothing to lease
    if not count:
        yield Lease([], ())
        return

    # Names of the locks
    prefix = allocation(environment)
    names = {device: f"{prefix}{name}" for device, name in gpus.lock_names(ids).items()}
    if len(set(names.values())) < len(ids):
        raise UserError(f"{gpus.said_by(environment)} names a GPU twice: name each once")

    # One lease after another
    folder = shared_folder(Path(environment.get("PIPELINE_LEASE_DIR", FOLDER)))
    with ExitStack() as held:
        folder_lock = held.enter_context(in_use(folder))
        with ExitStack() as queue:
            for name in sorted(set(names.values())):
                queue.enter_context(locked(folder / f"{name}.queue", wait=True))
            descriptors = collect(count, names, folder, held)
        of_ranks = tuple(f"{folder / names[device]}{RANKS}" for device in descriptors)
        yield Lease(
            sorted(descriptors, key=ids.index), (*descriptors.values(), folder_lock), of_ranks
        )


def allocation(environment: Mapping[str, str]) -> str:
    """Prefix of the names of locks in a Slurm job or step, which numbers its GPUs itself; else "".

    Two steps may each call another device 0, and so may two nodes that share a folder.
    """
    if "SLURM_JOB_ID" not in environment:
        return ""
    names = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURMD_NODENAME")
    return "-".join(["slurm", *(environment.get(name, "") for name in names), ""])


@contextmanager
def in_use(folder: Path) -> Iterator[int]:
    """A descriptor that keeps systemd-tmpfiles from clearing the folder: a shared lock of it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        take_lock(descriptor, shared=True)
        yield descriptor
    finally:
        os.close(descriptor)


def collect(count: int, names: Mapping[str, str], folder: Path, held: ExitStack) -> dict[str, int]:
    """{device: descriptor} of `count` locked devices, waiting for those that are busy."""
    leased: dict[str, int] = {}
    has_warned = False
    while True:
        for device, name in names.items():
            if device not in leased and len(leased) < count:
                with ExitStack() as taken:
                    descriptor = taken.enter_context(locked(folder / name))
                    if descriptor is not None and not ranks_are_left(folder / name):
                        leased[device] = descriptor
                        held.push(taken.pop_all())
        # Enough, or wait on
        if len(leased) == count:
            return leased
        if not has_warned:
            busy = ",".join(device for device in names if device not in leased)
            print(f"waiting for {count - len(leased)} more GPUs: {busy} are in use", flush=True)
            has_warned = True
        time.sleep(POLL)


def ranks_are_left(lock: Path) -> bool:
    """Whether ranks of an ended launcher still use a device."""
    with locked(lock.with_name(f"{lock.name}{RANKS}")) as free:
        return free is None


def held_by_rank(rank_locks: Sequence[str]) -> list[int]:
    """Descriptors that hold a lease's `rank_locks` together with its other ranks."""
    descriptors = [open_shared(Path(lock)) for lock in rank_locks]
    for descriptor in descriptors:
        take_lock(descriptor, shared=True, wait=True)
    return descriptors


@contextmanager
def locked(path: Path, wait: bool = False) -> Iterator[int | None]:
    """A descriptor that holds the lock of a file, or None if another process holds it.

    A lock needs no right to write, so that users share files that each other made.
    """
    descriptor = open_shared(path)
    # The file must still be there
    try:
        while True:
            if not take_lock(descriptor, wait=wait):
                yield None
                return
            if is_still(path, descriptor):
                break
            os.close(descriptor)  # the folder was cleared meanwhile
            descriptor = open_shared(path)
        yield descriptor
    finally:
        os.close(descriptor)


def open_shared(path: Path) -> int:
    """A descriptor of a file, which is made readable for everybody if it is absent."""
    while True:
        # Usually it exists
        try:
            return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            try:
                descriptor = os.open(
                    path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444
                )
            except FileExistsError:
                continue
            except FileNotFoundError:  # somebody has removed the folder
                shared_folder(path.parent)
                continue
            os.fchmod(descriptor, 0o444)  # whatever the umask
            return descriptor


def shared_folder(folder: Path) -> Path:
    """`folder`, made if it is absent, in which every user of the machine may make files.

    Raises UserError if it is not such a folder.
    """
    # Open to everybody
    try:
        folder.mkdir()
        folder.chmod(0o1777)
    except FileExistsError:
        pass

    # Nobody else's trap
    kind = folder.lstat()
    writable = os.access(folder, os.W_OK | os.X_OK)
    if not stat.S_ISDIR(kind.st_mode) or not writable:
        raise UserError(
            f"{folder} is not a folder that this user may write to, and GPUs are leased there: "
            "have it deleted or given mode 1777, or name another in PIPELINE_LEASE_DIR"
        )
    return folder
