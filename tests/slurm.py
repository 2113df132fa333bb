"""A real Slurm on this machine, for tests: munge, a controller, and nodes with 4 declared GPUs.

As root with Debian's slurm-wlm and munge: `with cluster(folder) as environment:` starts them and
yields the variables with which commands reach them. Pretended GPUs are character devices, which
Slurm insists on. All of it ends with the block.
"""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

TOOLS = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "squeue", "scancel", "scontrol")
COMMANDS = ("srun", "sbatch", "squeue", "sinfo", "scancel", "scontrol")
DEVICES = "/dev/null,/dev/zero,/dev/full,/dev/random"
CONTROL_PORT, NODE_PORT = 16817, 16818
NETWORK_PORT = 17817  # of the controller of several nodes, beside one of one node
CONTROL_NETWORK = "10.77.0.254"  # this side of tests/nodes.py

# A job that is queued again waits for cred_expire, seconds.
CONF = """\
ClusterName=test
SlurmctldHost={host}({control})
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.sock,cred_expire=10
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
KillWait=5
MinJobAge=300
GresTypes=gpu
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerParameters=sched_min_interval=0,batch_sched_delay=0
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
# Enough of sacct for submitit where there is no accounting.
SACCT = """\
#!/bin/sh
ids=; while [ $# -gt 0 ]; do [ "$1" = -j ] && { ids="$ids,$2"; shift; }; shift; done
echo 'JobID|State|NodeList'; exec squeue -h --states=all -j "${ids#,}" -o '%i|%T|%N'
"""


def missing() -> str:
    """What is missing for a Slurm of our own; empty where nothing is."""
    if os.geteuid() != 0:
        return "root"
    return ", ".join(tool for tool in TOOLS if not shutil.which(tool))


def configure(folder: Path, inside: Sequence[Sequence[str]]) -> None:
    """Write the configuration, and commands that name it.

    `inside`: words before a command on each node (tests/nodes.py), empty ones for this machine.
    """
    several = bool(inside[0])
    host = socket.gethostname().partition(".")[0]
    control, port = (CONTROL_NETWORK, NETWORK_PORT) if several else ("127.0.0.1", CONTROL_PORT)
    lines = [CONF.format(host=host, control=control, port=port, folder=folder)]
    for k in range(1, len(inside) + 1):
        (folder / f"spool.tn{k}").mkdir()
        place = f"NodeHostname={host} NodeAddr=127.0.0.1 Port={NODE_PORT + k}"
        if several:
            place = f"NodeHostname=tn{k} NodeAddr=10.77.0.{k} Port={NODE_PORT}"
        lines.append(
            f"NodeName=tn{k} {place} CPUs=16 SocketsPerBoard=1 CoresPerSocket=16 ThreadsPerCore=1 "
            "RealMemory=500000 Gres=gpu:4 State=UNKNOWN\n"
        )
    nodes = [line for line in lines if line.startswith("NodeName")]
    text = lines[0].replace("PartitionName", "".join(nodes) + "PartitionName")
    (folder / "slurm.conf").write_text(text)
    (folder / "gres.conf").write_text(f"AutoDetect=off\nName=gpu File={DEVICES}\n")
    for name in ("state", "log", "bin"):
        (folder / name).mkdir()
    for name in COMMANDS:
        script = f'#!/bin/sh\nSLURM_CONF={folder}/slurm.conf exec /usr/bin/{name} "$@"\n'
        executable(folder / "bin" / name, script)
    executable(folder / "bin/sacct", SACCT)
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    folder.chmod(0o755)


def executable(path: Path, content: str) -> None:
    """Write a script."""
    path.write_text(content)
    path.chmod(0o755)


def start(folder: Path, name: str, words: Sequence[str]) -> subprocess.Popen:
    """A daemon in the foreground, with its log."""
    with (folder / "log" / name).open("wb") as log:
        return subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)


@contextmanager
def cluster(folder: Path, inside: Sequence[Sequence[str]] = ((),)) -> Iterator[dict[str, str]]:
    """A Slurm with a node for each of `inside`; yields the environment for its users.

    `folder` is new and short: sockets are in it, and a new Slurm counts its jobs from 1 again.
    """
    configure(folder, inside)
    environment = dict(os.environ, SLURM_CONF=f"{folder}/slurm.conf")
    environment["PATH"] = f"{folder}/bin:{environment['PATH']}"
    daemons: list[subprocess.Popen] = []
    try:
        munge = [f"--{what}={folder}/{name}" for what, name in MUNGE.items()]
        daemons.append(start(folder, "munged", ["munged", "--foreground", *munge]))
        wait_for(lambda: (folder / "munge.sock").exists(), folder)
        conf = ["-f", f"{folder}/slurm.conf"]
        daemons.append(start(folder, "slurmctld", ["slurmctld", "-D", "-i", *conf]))
        for k, before in enumerate(inside, 1):
            words = [*before, "slurmd", "-D", "-N", f"tn{k}", *conf]
            daemons.append(start(folder, f"slurmd.{k}", words))
        wait_for(lambda: states(environment) == ["idle"] * len(inside), folder)
        yield environment
    finally:
        stop(daemons, environment)


MUNGE = {
    "key-file": "munge.key",
    "socket": "munge.sock",
    "pid-file": "munged.pid",
    "log-file": "log/munged.log",
    "seed-file": "munge.seed",
}


def states(environment: dict[str, str]) -> list[str]:
    """The state of each node."""
    return output(environment, "sinfo", "-h", "-N", "-o", "%T").split()


def output(environment: dict[str, str], *words: str) -> str:
    """What a command of Slurm prints."""
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    return done.stdout


def wait_for(what: object, folder: Path, seconds: float = 20) -> None:
    """Wait until `what()`; raises AssertionError with the place of the logs."""
    assert callable(what)
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until, f"Slurm did not come up, see {folder}/log"
        time.sleep(0.1)


def stop(daemons: list[subprocess.Popen], environment: dict[str, str]) -> None:
    """Cancel what runs, wait for it, then end the daemons, the last first."""
    if len(daemons) > 1:
        output(environment, "scancel", "-p", "main")
        until = time.monotonic() + 15
        while output(environment, "squeue", "-h") and time.monotonic() < until:
            time.sleep(0.1)
    for daemon in reversed(daemons):
        daemon.send_signal(signal.SIGTERM)
        try:
            daemon.wait(10)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()
