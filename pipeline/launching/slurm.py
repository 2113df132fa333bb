"""Facts of a job inside a Slurm allocation: its nodes, their meeting place, the time left."""

import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from pipeline.base.errors import UserError
from pipeline.config.machine_keys import Launch
from pipeline.launching.console import write

# A step's port follows from its number and its job's; Linux hands out those from 32768 on.
FIRST_PORT, PORTS, STEPS = 12000, 20000, 16


def in_allocation(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process belongs to a Slurm job."""
    return "SLURM_JOB_ID" in environment


def one_task_a_node(nodes: int, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is one of `nodes` tasks of a step, each on a separate node."""
    counts = [environment.get(f"SLURM_STEP_NUM_{unit}") for unit in ("NODES", "TASKS")]
    return counts == [str(nodes)] * 2


def ranks_of_step(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variables that torchrun would set, for a task of a step of several: srun by hand.

    Empty outside such a step, and if they are set already. The ranks of one node meet
    at the loopback.
    """
    # Started by a launcher
    if "RANK" in environment or int(environment.get("SLURM_STEP_NUM_TASKS", 1)) < 2:
        return {}

    # Torchrun's variables
    host, _, port = meeting_place(environment).rpartition(":")
    alone = environment["SLURM_STEP_NUM_NODES"] == "1"
    return {
        "RANK": environment["SLURM_PROCID"],
        "LOCAL_RANK": environment["SLURM_LOCALID"],
        "WORLD_SIZE": environment["SLURM_STEP_NUM_TASKS"],
        "MASTER_ADDR": "127.0.0.1" if alone else host,
        "MASTER_PORT": port,
    }


def srun(nodes: int, threads: int) -> list[str]:
    """Words that start what follows once on each of the job's nodes, with all its GPUs there."""
    words = ["srun", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1"]
    return [*words, f"--cpus-per-task={threads}", "--kill-on-bad-exit=1"]


def meeting_place(environment: Mapping[str, str] = os.environ) -> str:
    """host:port of this step's first node, with a port that other steps do not use.

    Raises UserError if Slurm cannot say the nodes' names.
    """
    # Names of the nodes
    nodes = environment.get("SLURM_STEP_NODELIST") or environment["SLURM_JOB_NODELIST"]
    try:
        done = subprocess.run(
            ["scontrol", "show", "hostnames", nodes], check=True, capture_output=True, text=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError(
            f"the names of the nodes {nodes} cannot be had from scontrol ({error}): "
            "give launch.rdzv_endpoint=HOST:PORT"
        ) from error

    # A port per step
    job, step = (int(environment.get(f"SLURM_{name}_ID", 0)) for name in ("JOB", "STEP"))
    port = FIRST_PORT + (STEPS * job + step % STEPS) % PORTS
    return f"{done.stdout.split()[0]}:{port}"


def asked(field: str, environment: Mapping[str, str] = os.environ) -> str:
    """The answer of squeue for this job in one of its formats; empty if it does not answer."""
    words = ["squeue", "-h", "-j", environment["SLURM_JOB_ID"], "-o", field]
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=30).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def num_nodes(environment: Mapping[str, str] = os.environ) -> int:
    """Number of nodes of this job; Snakemake unsets the variable in jobs of several."""
    answer = environment.get("SLURM_JOB_NUM_NODES") or asked("%D", environment)
    return int(answer) if answer.isdigit() else 1


def seconds_left(environment: Mapping[str, str] = os.environ) -> float | None:
    """Seconds until the job's time limit; None if there is none, or it is unknown."""
    if end := environment.get("SLURM_JOB_END_TIME"):
        return float(end) - time.time()
    return in_seconds(asked("%L", environment))


def in_seconds(text: str) -> float | None:
    """Slurm's [[days-]hours:]minutes:seconds in seconds; None for anything else."""
    if not re.fullmatch(r"(\d+-)?(\d+:){0,2}\d+", text):
        return None
    days, _, clock = text.rpartition("-")
    parts = [0, 0, *map(int, clock.split(":"))][-3:]
    return float(86400 * int(days or 0) + 3600 * parts[0] + 60 * parts[1] + parts[2])


@contextmanager
def warned(launch: Launch) -> Iterator[None]:
    """Send this process SIGUSR1 some time before the limit of its Slurm job.

    The warning that Slurm itself can send does not reach a job through Snakemake: `--signal`
    goes to the processes of the step, of which Snakemake itself ends at it and takes the ranks
    along. launch.slurm.signal_seconds before the end, or half of the time if that is short.
    """
    # Without a limit
    seconds = seconds_left() if in_allocation() else None
    if seconds is None:
        yield
        return

    # Half at the latest
    wait = max(seconds - launch.slurm.signal_seconds, seconds / 2)
    print(
        f"Slurm gives this job {seconds:.0f} s: it is told to stop after {wait:.0f} s", flush=True
    )
    # Warned in time
    timer = threading.Timer(wait, os.kill, (os.getpid(), signal.SIGUSR1))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def ending_with_parents() -> Iterator[None]:
    """In an allocation, send this process SIGTERM when those who started it are gone.

    These are its parent and, behind the shell of a rule, Snakemake. A Slurm that follows processes
    by their parents (proctrack/linuxproc) ends a job without those whose parents have died: they
    would train on, on GPUs that the next job gets. Not with nohup, which asks for that.
    """
    # Who started us
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    parents = psutil.Process().parents()[:2] if in_allocation() and not ignored else []
    if len(parents) > 1 and not is_snakemake(parents[1]):
        del parents[1]

    # Looked for each second
    ended = threading.Event()
    watch = threading.Thread(target=wait_for_end, args=(parents, ended), daemon=True)
    if parents:
        watch.start()
    try:
        yield
    finally:
        ended.set()


def wait_for_end(parents: Sequence[psutil.Process], ended: threading.Event) -> None:
    """Send this process SIGTERM once if one of `parents` is gone before `ended`."""
    while all(is_alive(parent) for parent in parents):
        if ended.wait(1):
            return
    os.kill(os.getpid(), signal.SIGTERM)
    write(b"the process that started this in its Slurm job is gone: stopping it\n")


def is_alive(process: psutil.Process) -> bool:
    """Whether a process has not ended; a zombie has."""
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def is_snakemake(process: psutil.Process) -> bool:
    """Whether a process is a Snakemake, by its command."""
    with suppress(psutil.Error):
        return any(Path(word).name == "snakemake" for word in process.cmdline())
    return False
