"""The launchers, one class for each value of `launch.launcher`, and the table of them.

A launcher says how many ranks a job has, on which machines, who finds their GPUs, and starts them.
A new one is a class here, a row of LAUNCHERS and a name in the configuration's `launch.launcher`.
"""

import os
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.base.errors import UserError
from pipeline.compute import gpus
from pipeline.config.machine_keys import Launch
from pipeline.launching import commands, console, slurm
from pipeline.launching.leases import Lease
from pipeline.launching.programs import Program, environment_for
from pipeline.launching.running import Registered
from pipeline.launching.supervise import supervise


@dataclass(frozen=True)
class Start:
    """A job whose checks have passed."""

    program: Program
    # Its share of the machine
    num_ranks: int  # per machine
    num_gpus: int  # per machine
    threads: int  # CPU threads, all ranks of a machine together
    # How it is launched
    launch: Launch
    log: Path | None
    registered: Registered


class Launcher:
    """Ranks on this machine: a process alone, or several under torchrun."""

    spans_nodes = False  # whether ranks may run on launch.nnodes machines
    leases_gpus = True  # of this machine; else a scheduler finds them
    starts_ranks = True  # else the job is one process, whatever GPUs it may take
    has_stdin = True  # of this process; else ranks cannot read it

    def settled(self, launch: Launch) -> Launch:
        """`launch` with the nodes and the meeting place that this launcher will use."""
        return launch if self.spans_nodes else launch.model_copy(update={"nnodes": 1})

    def is_started_by_srun(self, launch: Launch) -> bool:
        """Whether the job needs a launcher on each node of this process's Slurm allocation."""
        return False

    def num_ranks(self, num_gpus: int, device: str, visible: list[str]) -> int:
        """Ranks per machine of a step that may take `num_gpus` GPUs there; raises UserError."""
        if not self.leases_gpus:
            visible = [str(index) for index in range(num_gpus)]
        return gpus.processes(num_gpus, device, visible) if self.starts_ranks else 1

    def start(self, job: Start, lease: Lease | None) -> int:
        """Start the ranks and wait for them; returns the exit status.

        `lease`: the job's GPUs; None if a scheduler finds them or there are none to choose from.
        """
        ids = lease.ids if lease else None
        variables = commands.environment(ids, job.threads, job.num_ranks, job.launch)
        variables |= job.program.variables()
        words, module = self.command(job), job.program.module
        return supervise(
            words,
            environment_for(words[0], os.environ | variables),
            job.log,
            lease.descriptors if lease else (),
            job.registered.touch,
            command=command_line(words[: -len(module)] + module[:2], variables),
            program=job.program,
        )

    def command(self, job: Start) -> list[str]:
        """The words that start the ranks of this machine."""
        return commands.command(job.program.module, job.num_ranks, job.launch, job.program.is_step)


class SingleProcess(Launcher):
    """One process, on at most one GPU."""

    starts_ranks = False

    def command(self, job: Start) -> list[str]:
        """Another project's program alone as well, without the variables of a rank."""
        if job.launch.max_restarts == 0:
            return [job.program.python, *job.program.module]
        return super().command(job)


class Torchrun(Launcher):
    """torchrun on several machines, each of which runs the same command."""

    spans_nodes = True

    def settled(self, launch: Launch) -> Launch:
        """`launch` as it is meant inside a Slurm allocation, if no meeting place is named.

        A job of one node, as other stages have, stands alone; with one task on each node, the
        tasks meet at the first.
        """
        # Named or not needed
        if launch.rdzv_endpoint or launch.nnodes == 1 or not slurm.in_allocation():
            return launch

        # Places that Slurm knows
        if slurm.num_nodes() == 1:
            return launch.model_copy(update={"launcher": "standalone", "nnodes": 1})
        if not slurm.one_task_a_node(launch.nnodes):
            return launch

        # The first node
        job_id = os.environ["SLURM_JOB_ID"]
        meeting = {"rdzv_endpoint": slurm.meeting_place(), "rdzv_id": job_id}
        return launch.model_copy(update=meeting)

    def is_started_by_srun(self, launch: Launch) -> bool:
        """True in a Slurm allocation if `launch` has several nodes and no meeting place."""
        return launch.nnodes > 1 and launch.rdzv_endpoint is None and slurm.in_allocation()


class SubmititLocal(Launcher):
    """submitit's local executor: a task per rank on this machine."""

    def start(self, job: Start, lease: Lease | None) -> int:
        """As every launcher does."""
        ids = lease.ids if lease and lease.ids else None
        variables = commands.environment(ids, job.threads, job.num_ranks, job.launch)
        locks = lease.rank_locks if lease else ()
        num_gpus = len(ids) if ids else 0
        return submit_job(job, "local", num_gpus, variables, locks)


class SubmititSlurm(Launcher):
    """One Slurm job with a task per rank, which may wait in the queue."""

    spans_nodes = True
    leases_gpus = False
    has_stdin = False

    def start(self, job: Start, lease: Lease | None) -> int:
        """As every launcher does; the nodes, and so their network, are not known here."""
        variables = commands.rank_environment(None, job.threads, job.num_ranks, job.launch)
        if job.launch.interface:
            variables |= commands.network(job.launch)
        return submit_job(job, "slurm", job.num_gpus, variables)


LAUNCHERS: dict[str, Launcher] = {
    "standalone": Launcher(),
    "torchrun": Torchrun(),
    "submitit_local": SubmititLocal(),
    "submitit_slurm": SubmititSlurm(),
    "none": SingleProcess(),
}


def launcher(launch: Launch) -> Launcher:
    """The launcher that a configuration names."""
    return LAUNCHERS[launch.launcher]


def submit_job(
    job: Start,
    cluster: Literal["local", "slurm"],
    num_gpus: int,
    variables: dict[str, str],
    rank_locks: Sequence[str] = (),
) -> int:
    """Run the job through submitit in a new folder; returns the exit status.

    `cluster`: in submitit's words; local ranks end with this process. `num_gpus`: per machine.
    `rank_locks`: of the lease that the ranks hold. Raises UserError if launch.folder cannot be
    written to.
    """
    from pipeline.launching import submit  # submitit is needed by its launchers only

    # A folder per job
    name = f"{job.program.name}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    folder = Path(job.launch.folder).absolute() / name
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise UserError(
            f"launch.folder={job.launch.folder} cannot be written to ({error.strerror}): "
            "name another folder"
        ) from error
    line = command_line(["submitit", job.launch.launcher, *job.program.module[:2]], variables)
    console.opened().show_command(line.encode())

    # Shares of each rank
    threads = max(1, job.threads // job.num_ranks)
    executor = submit.executor(cluster, folder, job.num_ranks, threads, num_gpus, job.launch)

    # Tasks end with us
    parent = os.getpid() if cluster == "local" else None
    program = job.program
    task = submit.Task(
        program.module, variables, parent, rank_locks, program.python, program.reads_stdin
    )
    return submit.submit(task, executor, folder, job.registered, program)


def command_line(words: Sequence[str], variables: dict[str, str]) -> str:
    """A line that tells what is started, and the environment variables that decide how."""
    names = ["CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"]
    names.append("PYTHON_EXEC")
    settings = " ".join(f"{name}={variables[name]}" for name in names if name in variables)
    return f"$ {shlex.join(words)} …  ({settings})\n"
