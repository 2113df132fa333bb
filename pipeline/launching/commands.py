"""The command and the environment of a job's ranks, for each kind of launcher."""

import ipaddress
import os
import re
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress

import psutil

from pipeline.base.code import code_sha256
from pipeline.base.errors import UserError
from pipeline.base.files import sha256_json
from pipeline.base.processes import LAUNCHED, STOP_SIGNALS
from pipeline.compute import gpus
from pipeline.config.machine_keys import Launch

# Rounds that OpenMP's threads spin while they wait for each other, before they sleep; by itself it
# takes 300,000. If other programs use the cores too, a spinning thread keeps the one that it waits
# for from its core, and a job takes several times as long; with free cores it takes a bit longer.
WAITING = {"GOMP_SPINCOUNT": "3000"}
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
# Seconds between a signal to stop and a kill: steps save a checkpoint, however long that takes;
# what others do is unknown.
SHUTDOWN, OTHERS_SHUTDOWN = 3600, 25
IS_STEP = "--is-step"  # for torchrun.py: the ranks are a step's, which go on from a checkpoint


def command(module: Sequence[str], count: int, launch: Launch, ours: bool = True) -> list[str]:
    """Python itself for one process; torchrun (torchrun.py) for several, or for restarts.

    `module` is -m MODULE and its arguments; one of another project gets torchrun for one process
    too. Raises UserError if nodes cannot meet.
    """
    # One process, no torchrun
    if count == 1 and launch.max_restarts == 0 and ours and launch.nnodes == 1:
        return [sys.executable, *module]

    # Where ranks meet
    words = [
        sys.executable,
        "-u",
        "-m",
        "pipeline.launching.torchrun",
        *([IS_STEP] if ours else []),
    ]
    words += meeting(launch) if launch.nnodes > 1 else ["--standalone", "--nnodes=1"]

    # Stopping and restarting
    words += [
        f"--signals-to-handle={','.join(number.name for number in STOP_SIGNALS)}",
        f"--shutdown-timeout={SHUTDOWN if ours else OTHERS_SHUTDOWN}",
    ]
    words += [f"--max-restarts={launch.max_restarts}", f"--nproc-per-node={count}"]
    return [*words, *module]


def identified(launch: Launch, module: str, identity: Mapping[str, object]) -> Launch:
    """`launch` with the name of the job at its meeting place, if it has several nodes and no name.

    It follows from what all ranks must have in common, so that nodes of different jobs, or of one
    job with different keys, do not run together.
    """
    if launch.nnodes == 1 or launch.rdzv_id is not None:
        return launch
    whole = {"identity": identity, "code": code_sha256() if identity else None}
    name = f"{module.rpartition('.')[2]}-{sha256_json(whole)[:12]}"
    return launch.model_copy(update={"rdzv_id": name})


def meeting(launch: Launch) -> list[str]:
    """torchrun's words for a job over several nodes, each of which runs the same command.

    The node whose address the endpoint has keeps the store; every node names the address by which
    the others reach it, since its host name may mean something else there.
    """
    # Who hosts the meeting
    host, port = endpoint(launch)
    address, is_host = local_address(host, port)
    return [
        f"--nnodes={launch.nnodes}",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint={host}:{port}",
        f"--rdzv-id={launch.rdzv_id}",
        f"--rdzv-conf=is_host={int(is_host)},join_timeout={launch.join_seconds}",
        f"--local-addr={address}",
    ]


def endpoint(launch: Launch) -> tuple[str, int]:
    """Host and port of launch.rdzv_endpoint; raises UserError if there is none."""
    host, _, port = (launch.rdzv_endpoint or "").rpartition(":")
    if not host or not re.fullmatch("[0-9]{1,5}", port) or not 0 < int(port) < 2**16:
        raise UserError(
            f"launch.nnodes={launch.nnodes} needs launch.rdzv_endpoint=HOST:PORT, the first node "
            f"and a free port of it, the same on every node; it is {launch.rdzv_endpoint}"
        )
    return host, int(port)


def local_address(host: str, port: int) -> tuple[str, bool]:
    """The address of this machine on the way to `host`, and whether `host` is this machine.

    Raises UserError if `host` has no address, or none by which others could reach it.
    """
    # Addresses of the host
    try:
        candidates = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    except socket.gaierror as error:
        raise UserError(
            f"launch.rdzv_endpoint names the host {host}, which has no address here "
            f"({error.strerror}): give the first node's address"
        ) from error

    # Ours, or the way there
    for family, kind, _, _, target in candidates:
        if is_loopback(str(target[0])):  # as distributions name the machine itself in /etc/hosts
            continue
        if str(target[0]) in addresses():
            return str(target[0]), True
        with (
            suppress(OSError),
            socket.socket(family, kind) as probe,
        ):  # else the next
            probe.connect(target)  # sends nothing
            return str(probe.getsockname()[0]), False
    raise UserError(
        f"launch.rdzv_endpoint names the host {host}, which means {candidates[0][4][0]} here, "
        "where other nodes cannot meet: give the first node's address on their network"
    )


def addresses() -> dict[str, str]:
    """{IP address: interface} of this machine."""
    kinds = (socket.AF_INET, socket.AF_INET6)
    return {
        entry.address.partition("%")[0]: name
        for name, entries in psutil.net_if_addrs().items()
        for entry in entries
        if entry.family in kinds
    }


def is_loopback(address: str) -> bool:
    """Whether an IP address means the machine that says it."""
    return ipaddress.ip_address(address).is_loopback


def interface(launch: Launch) -> str:
    """The interface over which ranks talk: launch.interface, or the one that leads to the others.

    Ranks of one machine use the loopback, whatever the machine's name resolves to.
    """
    if launch.interface:
        return launch.interface
    if launch.nnodes == 1:
        return next(name for address, name in addresses().items() if is_loopback(address))
    return addresses()[local_address(*endpoint(launch))[0]]


def environment(
    ids: Sequence[str] | None, threads: int, count: int, launch: Launch
) -> dict[str, str]:
    """The variables that a job on known nodes gets beside those of this process."""
    return rank_environment(ids, threads, count, launch) | network(launch)


def rank_environment(
    ids: Sequence[str] | None, threads: int, count: int, launch: Launch
) -> dict[str, str]:
    """The variables of `environment` that do not depend on the network.

    `ids`: GPUs of this job alone; None to leave them as they are. `threads` are divided by `count`
    ranks: Snakemake exports every THREADS variable with the threads of the whole job, and ranks
    that each took that many for one library alone (MKL) ran ten times slower on two cores.
    """
    # Cores shared by ranks
    share = max(1, min(threads, gpus.cpu_cores()) // count)
    chosen = str(share if launch.threads == "auto" else launch.threads)
    result = dict.fromkeys(THREADS, chosen)
    result |= {name: os.environ.get(name, value) for name, value in WAITING.items()}
    # Ranks that start again must not find the addresses of the dead in the agent's store.
    result["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    result["CUDA_DEVICE_ORDER"] = os.environ.get("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    # The leased devices
    if ids is not None:
        result |= {"CUDA_VISIBLE_DEVICES": ",".join(ids), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    result[LAUNCHED] = "1"
    return result


def network(launch: Launch, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Interfaces for gloo and, between nodes, for nccl, if the user has not set them."""
    names = ["GLOO_SOCKET_IFNAME"]
    if launch.interface or launch.nnodes > 1:
        names.append("NCCL_SOCKET_IFNAME")
    return {name: interface(launch) for name in names if name not in environment}
