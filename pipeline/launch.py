"""Start a job with its processes, threads and devices; pass signals on; leave nobody behind.

    python -m pipeline.launch --gpus 4 --log LOG -- -m pipeline.train config=… out=…
    python -m pipeline.launch --gpus 2 [launch.nnodes=2 …] -- -m anybodys.train its own arguments

With several processes the command that runs is `torchrun --standalone --nproc-per-node=N …`, and
for another project's module it is torchrun with one process too, its arguments handed on untouched.
The job's GPUs are leased (launching/leases.py). What it prints goes to the terminal and to the log.
Exit status: the job's own, or 75 where a signal stopped it after it had saved its state.
"""

import argparse
import importlib
import os
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.base.errors import UserError, run_main
from pipeline.config.load import load_step
from pipeline.config.schema import Config, Launch
from pipeline.launching import commands, gpus, slurm
from pipeline.launching.gpus import processes
from pipeline.launching.leases import Lease, lease
from pipeline.launching.running import Registered
from pipeline.launching.supervise import supervise
from pipeline.steps import BY_MODULE, Step


@dataclass(frozen=True)
class Job:
    """What is to be started."""

    module: list[str]  # -m MODULE and its arguments
    settings: list[str]  # words before it, launch.key=value
    wanted: int  # GPUs
    threads: int  # CPU threads, all processes together

    @property
    def name(self) -> str:
        """The module's name."""
        return self.module[1]

    @property
    def ours(self) -> bool:
        """Whether it is a step of this project, which may also run without a GPU."""
        return self.name.startswith("pipeline.")

    @property
    def step(self) -> Step | None:
        """The step, if it is one."""
        return BY_MODULE.get(self.name)

    @property
    def ranked(self) -> bool:
        """Whether it is a step that runs as several ranks."""
        return self.step is not None and self.step.ranked

    def parsed(self) -> tuple[Config, dict[str, str]]:
        """Configuration and paths of a step; of another module, what stands before it."""
        if not self.ours:  # its data do not depend on IMAGENET_RES
            return load_step(self.settings, (), environment={})
        return load_step([*self.module[2:], *self.settings], self.step.words if self.step else ())


def check_torch(visible: list[str], device: str) -> None:
    """Raise UserError where GPUs are visible but this build of torch cannot use them."""
    import torch

    if visible and device == "auto" and torch.cuda.device_count() == 0:
        raise UserError(
            f"GPUs {','.join(visible)} are visible but torch {torch.__version__} cannot use them: "
            "install its CUDA build, or give runtime.device=cpu"
        )


def ranks(job: Job, config: Config, paths: dict[str, str], visible: list[str]) -> int:
    """How many processes the job has on a machine; UserError where it cannot have its GPUs."""
    launch, device = config.launch, config.runtime.device
    if launch.launcher == "submitit_slurm":
        visible = [str(i) for i in range(job.wanted)]  # the scheduler finds them
    elif not job.ours and job.wanted > len(visible):
        raise UserError(
            f"{job.wanted} GPUs are asked for but {len(visible)} visible "
            f"({gpus.said_by()}): pass --gpus {len(visible)} or make more visible"
        )
    if not job.ours:
        return max(1, job.wanted)
    if not job.ranked:
        return 1
    count = processes(job.wanted, launch.launcher, device, visible)
    if launch.launcher != "submitit_slurm":
        check_torch([] if gpus.declared() else visible, device)
    nodes = launch.nnodes if launch.launcher in ("torchrun", "submitit_slurm") else 1
    importlib.import_module(job.name).preflight(config, paths, count * nodes)
    return count


def devices(job: Job, config: Config, count: int, visible: list[str]) -> int:
    """How many GPUs the job's lease is for: one a process, or fewer where there are no more."""
    if job.ours and config.runtime.device == "cpu":
        return 0
    return min(job.wanted, count if job.ranked else job.wanted, len(visible))


def run(job: Job, log: Path | None) -> int:
    """Lease, start and watch; returns the exit status."""
    config, paths = job.parsed()
    launch = on_these_nodes(config.launch)
    config = config.model_copy(update={"launch": launch})
    if slurm.over_nodes(launch):
        return on_every_node(job, launch, log)
    with Registered(job.module, max(1, job.wanted), log) as registered:  # its checks may wait
        return run_here(job, config, paths, log, registered)


def run_here(
    job: Job, config: Config, paths: dict[str, str], log: Path | None, registered: Registered
) -> int:
    """The same on this machine, or as one job of Slurm through submitit."""
    launch, visible = config.launch, gpus.visible()
    count = ranks(job, config, paths, visible)
    if launch.launcher == "submitit_slurm":
        registered.say(processes=count * launch.nnodes)
        return submitted(job, count, job.wanted, launch, None, registered)
    registered.say(processes=count)
    announce(job, count, visible)
    with lease(devices(job, config, count, visible)) as mine:
        leased = mine.ids if visible else None
        registered.say(gpus=mine.ids)
        with slurm.warned(launch):
            if launch.launcher == "submitit_local":
                return submitted(job, count, len(mine.ids), launch, mine, registered)
            more = commands.environment(leased, job.threads, count, launch)
            words = commands.command(job.module, count, launch, job.ours)
            show(words[: -len(job.module)] + job.module[:2], more)
            return supervise(words, os.environ | more, log, mine.descriptors, registered.touch)


def on_these_nodes(launch: Launch) -> Launch:
    """`launch` as it is meant inside a Slurm allocation, where no meeting place is named.

    A job of one node, as other stages have, stands alone; one task a node meets at the first.
    """
    named = launch.launcher != "torchrun" or launch.rdzv_endpoint is not None
    if named or launch.nnodes == 1 or not slurm.in_allocation():
        return launch
    if slurm.num_nodes() == 1:
        return launch.model_copy(update={"launcher": "standalone", "nnodes": 1})
    if not slurm.one_task_a_node(launch.nnodes):
        return launch
    found = {"rdzv_endpoint": slurm.meeting_place(), "rdzv_id": os.environ["SLURM_JOB_ID"]}
    return launch.model_copy(update=found)


def on_every_node(job: Job, launch: Launch, log: Path | None) -> int:
    """Start this launcher once on each node of the allocation; --gpus counts those of all."""
    if job.wanted % launch.nnodes:
        raise UserError(
            f"{job.wanted} GPUs cannot be divided over launch.nnodes={launch.nnodes}: "
            "ask for a multiple, the GPUs of all nodes together"
        )
    each = ["--gpus", str(job.wanted // launch.nnodes), "--threads", str(job.threads)]
    again = [sys.executable, "-m", "pipeline.launch", *each, *job.settings, "--", *job.module]
    words = [*slurm.srun(launch.nnodes, job.threads), *again]
    print(f"$ {shlex.join(words[:6])} …", flush=True)
    # srun kills its tasks on SIGTERM; SIGUSR1 it hands on, to the launchers of the nodes
    return supervise(words, os.environ, log, stop_with=signal.SIGUSR1)


def announce(job: Job, count: int, visible: list[str]) -> None:
    """Say in one line where there are no GPUs, or only pretended ones."""
    if gpus.declared():
        print(f"REHEARSAL: {gpus.said_by()} declares GPUs that are not there; all computes on CPU")
    elif job.wanted and not visible:
        how = f"{count} processes (gloo)" if count > 1 else "one process"
        print(f"no GPU is visible: {job.name} runs on the CPU in {how}", flush=True)


def submitted(
    job: Job, count: int, devices: int, launch: Launch, mine: Lease | None, registered: Registered
) -> int:
    """Run the job through submitit in a new folder of its own; returns the exit status.

    `mine`: the GPUs here; None where Slurm finds them.
    """
    from pipeline.launching import submit  # needed by these launchers only

    name = f"{job.name}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    folder = Path(launch.folder).absolute() / name
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise UserError(
            f"launch.folder={launch.folder} cannot be written to ({error.strerror}): name another"
        ) from error
    leased = mine.ids if mine and mine.ids else None
    more = commands.environment(leased, job.threads, count, launch)
    show(["submitit", launch.launcher, *job.module[:2]], more)
    made = submit.executor(folder, count, max(1, job.threads // count), devices, launch)
    task = submit.Task(job.module, more)
    if mine is not None:
        task = submit.Task(job.module, more, os.getpid(), mine.rank_locks)
    return submit.submit(task, made, folder, registered)


def show(words: Sequence[str], environment: dict[str, str]) -> None:
    """Print what is started, and the variables that decide how, in one line."""
    names = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
    said = " ".join(f"{name}={environment[name]}" for name in names if name in environment)
    print(f"$ {shlex.join(words)} …  ({said})", flush=True)


def main(argv: list[str]) -> None:
    """Entry point; see the module."""
    parser = argparse.ArgumentParser(
        prog="pipeline.launch",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s [--gpus N] [--threads N] [--log FILE] [launch.key=value …] -- -m MODULE …",
    )
    parser.add_argument("--gpus", type=int, default=0, help="GPUs that the job may take")
    parser.add_argument("--threads", type=int, default=gpus.cpu_cores(), help="CPU threads in all")
    parser.add_argument("--log", type=Path, help="file that gets a copy of the output")
    parser.add_argument("settings", nargs="*", help="launch.key=value")
    before, after = argv, []
    if "--" in argv:
        before, after = argv[: argv.index("--")], argv[argv.index("--") + 1 :]
    options = parser.parse_args(before)
    if len(after) < 2 or after[0] != "-m":
        parser.error("after -- comes what to start: -m MODULE key=value …")
    job = Job(after, options.settings, options.gpus, options.threads)
    sys.exit(run(job, options.log))


if __name__ == "__main__":
    run_main(main)
