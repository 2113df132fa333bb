"""Ranks through submitit: on this machine (its local executor) or as one Slurm job.

submitit starts one task per rank and tells it rank and addresses; each task runs the step as a
separate process, so that it is the same command as under torchrun. Before a time limit or a
preemption submitit warns the tasks: the ranks save, and the job is queued again. SIGTERM and Ctrl-C
to the launcher let the ranks save and end the job.
"""

import functools
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
import submitit
from submitit.helpers import DelayedSubmission, TorchDistributedEnvironment
from submitit.slurm.slurm import SlurmInfoWatcher, SlurmJob

from pipeline.base.processes import (
    become_subreaper,
    descendants,
    die_with_parent,
    end_descendants,
    exit_status,
    handle_stop_signals,
    not_to_save,
)
from pipeline.config.machine_keys import Launch
from pipeline.launching import console, slurm
from pipeline.launching.leases import held_by_rank
from pipeline.launching.programs import Program, environment_for, worst
from pipeline.launching.running import Registered

# How jobs are watched
STOP = signal.SIGUSR1  # tells the tasks of a Slurm job to save and end
POLL = 0.5  # seconds between two looks at a job
SIGN, HURRY = 100, 10  # looks between two signs of life and questions to Slurm; once told to stop
CONFIRM = 2.0  # seconds between two questions whether a job is over
UNLIMITED = 60 * 24 * 30  # minutes, for the local executor
# sacct's "job state codes" of which no job comes back
OVER: tuple[str, ...] = ("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL")
OVER += ("OUT_OF_MEMORY", "REVOKED", "TIMEOUT")


class Watcher(SlurmInfoWatcher):
    """Slurm's answers: a job is over if Slurm says so twice, by a state that is a last one.

    submitit takes each state that it does not know for the end, as SUSPENDED, or SIGNALING while
    Slurm warns a job before its time limit; and a job that Slurm queues again may have a last state
    for a moment, as NODE_FAIL.
    """

    def is_done(self, job_id: str, mode: str = "standard") -> bool:
        """Whether the job is over; `mode`: cache, standard or force, how hard to ask."""
        if mode == "cache":  # what submitit takes for done it never asks about again
            return False
        if not self._is_over(job_id, mode):
            return False
        time.sleep(CONFIRM)
        return self._is_over(job_id, "force")

    def _is_over(self, job_id: str, mode: str) -> bool:
        return self.get_state(job_id, mode=mode).upper().startswith(OVER)  # "CANCELLED by 1000" too


class Task:
    """One rank: what submitit pickles, starts, and asks for a continuation when time is up."""

    def __init__(
        self,
        module: Sequence[str],
        environment: Mapping[str, str],
        launcher: int | None = None,
        rank_locks: Sequence[str] = (),
        python: str = sys.executable,
        reads_stdin: bool = True,
    ) -> None:
        """`launcher`: the process whose end ends this one; `rank_locks`: of its lease of GPUs.

        `python`: the interpreter of the module; `reads_stdin`: else it gets /dev/null.
        """
        self.module, self.environment = list(module), dict(environment)
        self.launcher, self.rank_locks = launcher, list(rank_locks)
        self.python, self.reads_stdin = python, reads_stdin

    def __call__(self) -> int:
        """Run the step as the rank that submitit says; returns its exit status."""
        # what an earlier start of this job, which was queued again, left as its result
        submitit.JobEnvironment().paths.result_pickle.unlink(missing_ok=True)
        TorchDistributedEnvironment().export(overwrite=True, set_cuda_visible_devices=False)
        if os.environ["WORLD_SIZE"] == os.environ["LOCAL_WORLD_SIZE"]:
            os.environ["MASTER_ADDR"] = "127.0.0.1"  # whatever this node's name means here

        # The rank as a child
        self.child = subprocess.Popen(
            [self.python, *self.module],
            env=environment_for(self.python, os.environ | self.environment),
            stdin=None if self.reads_stdin else subprocess.DEVNULL,
            preexec_fn=functools.partial(die_with_parent, signal.SIGTERM, os.getpid()),
            pass_fds=held_by_rank(self.rank_locks),
        )

        # Signals and the launcher
        signal.signal(signal.SIGTERM, self._preempted if self.launcher is None else self._stop)
        signal.signal(STOP, self._stop)
        if self.launcher is not None:
            threading.Thread(target=self._follow, args=(self.launcher,), daemon=True).start()

        # Until it ends
        while (
            status := self.child.poll()
        ) is None:  # a blocking wait would hold what checkpoint needs
            time.sleep(POLL)
        return status

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.child.send_signal(signal.SIGTERM)

    def _preempted(self, number: int, frame: FrameType | None) -> None:
        """SIGTERM by Slurm: of a job that is cancelled; else of one that is preempted.

        That one is to be queued again, as on submitit's own warning.
        """
        if slurm.asked("%T") == "RUNNING":
            os.kill(os.getpid(), signal.SIGUSR2)
        else:
            self._stop(number, frame)

    def _follow(self, launcher: int) -> None:
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(launcher)
            while slurm.is_alive(process):  # one that nobody has waited for is not
                time.sleep(POLL)
        self.child.send_signal(signal.SIGTERM)

    def checkpoint(self) -> DelayedSubmission:
        """Let the ranks save, and say what goes on: called by submitit when time is up."""
        self.child.send_signal(signal.SIGTERM)
        with suppress(psutil.NoSuchProcess):
            psutil.Process(self.child.pid).wait()
        keeps = (self.launcher, self.rank_locks, self.python, self.reads_stdin)
        return DelayedSubmission(Task(self.module, self.environment, *keeps))


def executor(
    cluster: str, folder: Path, count: int, threads: int, gpus: int, launch: Launch
) -> submitit.AutoExecutor:
    """submitit's executor for `count` ranks per node with `threads` CPU threads each.

    `cluster`: local or slurm. `gpus`: per node. launch.nnodes is 1 for local.
    """
    # Size of the job
    slurm = cluster == "slurm"
    submitter = submitit.AutoExecutor(folder=folder, cluster=cluster, slurm_max_num_timeout=10**6)
    submitter.update_parameters(
        name="flow-pipeline",
        nodes=launch.nnodes,
        tasks_per_node=count,
        gpus_per_node=gpus,
        cpus_per_task=threads,
        stderr_to_stdout=True,
        timeout_min=launch.slurm.minutes if slurm else UNLIMITED,
    )
    # Only on Slurm
    if slurm:
        SlurmJob.watcher = Watcher(delay_s=600)  # seconds between questions that are not forced
        submitter.update_parameters(**slurm_parameters(launch))
    return submitter


def slurm_parameters(launch: Launch) -> dict[str, object]:
    """Settings of Slurm alone, by submitit's names; keys that are null are left to the cluster."""
    # Values of the keys
    keys = launch.slurm
    parameters = {
        "slurm_partition": keys.partition,
        "slurm_account": keys.account,
        "slurm_constraint": keys.constraint,
        "mem_gb": keys.memory_gb,
        "slurm_signal_delay_s": keys.signal_seconds,
    }
    # Null means default
    return {name: value for name, value in parameters.items() if value is not None}


def submit(
    task: Task,
    submitter: submitit.AutoExecutor,
    folder: Path,
    registered: Registered,
    program: Program,
) -> int:
    """Submit, show rank 0's output until the job ends; returns the worst exit status of its ranks.

    If a signal stopped it, `program`'s status after that.
    """
    # Signals may come early
    local = submitter.cluster == "local"
    become_subreaper()
    job: Any = None
    signals: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        signals.append(number)
        if job is not None and (len(signals) == 1 or not_to_save(signals)):
            end(job, local, at_once=not_to_save(signals))

    handle_stop_signals(stop)

    # Submitted without Ctrl-C
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for us, who let ranks save
    job = submitter.submit(task)
    signal.signal(signal.SIGINT, handler)
    if signals:  # one that came while the job was on its way
        end(job, local, at_once=False)

    # Shown until it ends
    print(f"job {job.job_id} by submitit, logs in {folder}", flush=True)
    registered.say(log=str(job.paths.stdout))
    if not local:
        registered.say(gpus=[f"Slurm job {job.job_id}"])
    follow(job, registered.touch, signals)
    while local and descendants():  # ranks that still save, though what started them has ended
        time.sleep(POLL)

    # Killed ranks leave no result, for which submitit would wait 15 s
    if not_to_save(signals):
        return program.status_after_stop(exit_status(-signal.SIGKILL), signals[0])

    # The worst of all
    try:
        statuses = [exit_status(int(result)) for result in job.results()]
        status = worst(statuses) if signals else max(statuses)
    except (submitit.core.utils.FailedJobError, submitit.core.utils.UncompletedJobError) as error:
        reason = " ".join(str(error).splitlines()[:2])  # the second line holds the job's state
        print(f"error: job {job.job_id} ended without a result: {reason}")
        status = 1
    return program.status_after_stop(status, signals[0]) if signals else status


def end(job: Any, local: bool, at_once: bool) -> None:
    """Have the ranks of a job save and leave; `at_once`: without saving."""
    # Local without saving
    if local and at_once:
        end_descendants()
    # Slurm without saving
    elif at_once:
        job.cancel(check=False)
    elif local:
        os.kill(int(job.job_id), signal.SIGTERM)
    else:
        # one that waits in the queue gets no signals: scancel would wait with it
        for filters in (["--state=PENDING"], ["--state=RUNNING", f"--signal={STOP.name}"]):
            subprocess.run(["scancel", "--quiet", *filters, job.job_id], check=False)


def follow(job: Any, alive: Callable[[], None], signals: Sequence[int]) -> None:
    """Copy the output of rank 0 to ours until the job is done; `alive` is called now and then.

    A job that leaves no result, as one that is cancelled, is known to be done once Slurm is asked;
    submitit by itself asks ever more rarely. `signals`: those that asked this process to stop.
    """
    # Until nothing is new
    num_bytes = 0
    done = False
    screen = console.opened()
    for look in itertools.count():
        if done:
            screen.close()
            return
        time.sleep(POLL)
        # Signs of life
        if look % (HURRY if signals else SIGN) == 0:
            alive()
            job.get_info(mode="force")  # done() of several tasks never asks at once
        done = job.done(force_check=False)
        # New output
        if job.paths.stdout.exists():
            with job.paths.stdout.open("rb") as stream:
                stream.seek(num_bytes)
                chunk = stream.read()
            num_bytes += len(chunk)
            screen.show(chunk)
