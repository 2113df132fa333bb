"""Start a job with its processes, threads and devices; pass signals on; leave nobody behind.

    python -m pipeline.launch --gpus 4 --log LOG -- -m pipeline.train config=… out=…
    python -m pipeline.launch --gpus 2 [launch.nnodes=2 …] -- -m anybodys.train its own arguments
    python -m pipeline.launch --python ENV/bin/python --processes 2 -- -m anybodys.train …

With several processes the command that runs is `torchrun --standalone --nproc-per-node=N …`. The
job's GPUs are leased (launching/leases.py). What it prints goes to the terminal and to the log.
Exit status: the job's own, or 75 if a signal stopped it after it had saved its state.

Another project's module is under torchrun with one process too (launcher=none: without), gets its
arguments untouched, and reads /dev/null unless --stdin is given. --python names the interpreter of
its environment, in which torch may be older than here. Told to stop (SIGTERM, and SIGKILL 25 s
later except under submitit or launcher=none), it may save or not: the exit status is 75 only if it
exits so itself, else that of the signal.
"""

import argparse
import importlib
import os
import shlex
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from pipeline.base.errors import UserError, run_main
from pipeline.base.progress import clock
from pipeline.compute import gpus
from pipeline.compute.gpus import check_torch
from pipeline.config.load import load_step
from pipeline.config.machine_keys import Launch
from pipeline.config.schema import Config
from pipeline.launching import commands, console, programs, slurm
from pipeline.launching.launchers import Launcher, Start, launcher
from pipeline.launching.leases import lease
from pipeline.launching.programs import Program
from pipeline.launching.running import Registered
from pipeline.launching.supervise import supervise
from pipeline.steps import BY_MODULE, Step


@dataclass(frozen=True)
class Job:
    """The job that is to be started."""

    # The command
    program: Program
    settings: list[str]  # words before it, launch.key=value
    # Its share
    wanted: int  # GPUs
    threads: int  # CPU threads, all processes together
    num_processes: int | None = None  # per machine; None: as the GPUs say

    @property
    def name(self) -> str:
        """The module's name."""
        return self.program.name

    @property
    def module(self) -> list[str]:
        """-m MODULE and its arguments."""
        return self.program.module

    @property
    def ours(self) -> bool:
        """Whether it is a module of this project, which may also run without a GPU."""
        return self.program.is_step

    @property
    def step(self) -> Step | None:
        """The step, if it is one."""
        return BY_MODULE.get(self.name) if self.ours else None

    @property
    def ranked(self) -> bool:
        """Whether it is a step that runs as several ranks."""
        return self.step is not None and self.step.ranked

    def parsed(self) -> tuple[Config, dict[str, str]]:
        """Configuration and paths of a step; of another module, what stands before it."""
        if not self.ours:  # its data do not depend on IMAGENET_RES
            return load_step(self.settings, (), environment={})
        return load_step([*self.module[2:], *self.settings], self.step.words if self.step else ())


def run(job: Job, log: Path | None) -> int:
    """Check, lease, start and watch a job; returns the exit status."""
    # The launcher
    config, paths = job.parsed()
    launch = launcher(config.launch).settled(config.launch)
    config = config.model_copy(update={"launch": launch})
    check_options(job, launcher(launch))
    # One start per node
    if launcher(launch).is_started_by_srun(launch):
        check_program(job)
        with slurm.ending_with_parents():
            return on_every_node(job, launch, log)

    # Checked, then started; its checks may wait
    with (
        slurm.ending_with_parents(),
        Registered(job.module, max(1, job.wanted), log) as registered,
    ):
        num_ranks, identity = checked_ranks(job, config, paths)
        launch = commands.identified(launch, job.name, identity)
        start = Start(job.program, num_ranks, job.wanted, job.threads, launch, log, registered)
        return run_here(job, config, start)


def check_options(job: Job, chosen: Launcher) -> None:
    """Raise UserError if a launcher cannot do what the options ask for."""
    # The number of processes
    if job.num_processes is not None and job.num_processes < 1:
        raise UserError(f"--processes={job.num_processes} starts nothing: give 1 or more")
    if job.ours and job.num_processes is not None:
        raise UserError(
            f"--processes is for other projects' programs: {job.name} has a process per GPU, "
            "--gpus N of them, on the CPU too"
        )
    if job.ours:
        return

    # What the launcher can give
    if not chosen.starts_ranks and (job.num_processes or 1) != 1:
        raise UserError(
            f"launch.launcher=none starts one process, not --processes={job.num_processes}: "
            "choose launcher=standalone"
        )
    if job.program.reads_stdin and not chosen.has_stdin:
        raise UserError(
            "--stdin cannot reach a Slurm job that waits in a queue: leave it out, or choose "
            "launcher=standalone"
        )


def check_program(job: Job) -> None:
    """Raise UserError if another project's interpreter or module is not there."""
    if not job.ours:
        programs.check(job.program, needs_torch=job.program.python != sys.executable)


def checked_ranks(job: Job, config: Config, paths: dict[str, str]) -> tuple[int, dict[str, object]]:
    """The number of the job's ranks per machine, and what all ranks must have in common.

    All checks that come before a start have passed then.

    Raises UserError if the job cannot have its GPUs, or its preflight finds a problem.
    """
    # The launcher's GPUs
    launch, visible = config.launch, gpus.visible()
    chosen = launcher(launch)
    # Modules of others
    if not job.ours:
        check_gpus(job, visible if chosen.leases_gpus else None)
        check_program(job)
        num_ranks = job.num_processes or max(1, job.wanted)
        return num_ranks if chosen.starts_ranks else 1, {}
    if not job.ranked:
        return 1, {}

    # Steps of ranks
    num_ranks = chosen.num_ranks(job.wanted, config.runtime.device, visible)
    if chosen.leases_gpus:
        check_torch(visible, config.runtime.device)
    step = importlib.import_module(job.name)
    return num_ranks, step.preflight(config, paths, num_ranks * launch.nnodes)


def check_gpus(job: Job, visible: list[str] | None) -> None:
    """Raise UserError if another project's module asks for more GPUs than are visible."""
    if visible is not None and job.wanted > len(visible):
        on_cpu = f" --processes {job.wanted} for as many on the CPU" if not visible else ""
        raise UserError(
            f"{job.wanted} GPUs are asked for but {len(visible)} visible "
            f"({gpus.said_by()}): pass --gpus {len(visible)}{on_cpu} or make more visible"
        )


def run_here(job: Job, config: Config, start: Start) -> int:
    """Lease this machine's GPUs, unless a scheduler finds the job's, and start the ranks."""
    # A scheduler finds them
    chosen, registered = launcher(config.launch), start.registered
    if not chosen.leases_gpus:
        registered.say(processes=start.num_ranks * config.launch.nnodes)
        return chosen.start(start, None)

    # Leased here
    visible = gpus.visible()
    registered.say(processes=start.num_ranks)
    announce(job, start.num_ranks, visible, chosen)
    with lease(num_leased(job, config, start.num_ranks, visible)) as leased:
        registered.say(gpus=leased.ids)
        with slurm.warned(config.launch):
            return chosen.start(start, leased if visible else None)


def num_leased(job: Job, config: Config, num_ranks: int, visible: list[str]) -> int:
    """GPUs that the job leases: one per rank, or fewer if there are not that many."""
    if job.ours and config.runtime.device == "cpu":
        return 0
    return min(job.wanted, num_ranks if job.ranked else job.wanted, len(visible))


def on_every_node(job: Job, launch: Launch, log: Path | None) -> int:
    """Start this command once on each node of the allocation; --gpus counts those of all nodes."""
    # Equal shares
    if job.wanted % launch.nnodes:
        raise UserError(
            f"{job.wanted} GPUs cannot be divided over launch.nnodes={launch.nnodes}: "
            "ask for a multiple, the GPUs of all nodes together"
        )

    # The same command again
    shares = ["--gpus", str(job.wanted // launch.nnodes), "--threads", str(job.threads)]
    shares += ["--processes", str(job.num_processes)] if job.num_processes else []
    options = [*shares, *job.program.options(), *job.settings]
    again = [sys.executable, "-m", "pipeline.launch", *options, "--", *job.module]
    words = [*slurm.srun(launch.nnodes, job.threads), *again]
    print(f"$ {shlex.join(words[:6])} …", flush=True)
    # srun kills its tasks on SIGTERM; SIGUSR1 it hands on, to the launchers of the nodes
    return supervise(words, os.environ, log, stop_with=signal.SIGUSR1, program=job.program)


def announce(job: Job, count: int, visible: list[str], chosen: Launcher) -> None:
    """Say in one line if the job has no GPUs, or only declared ones."""
    why = "visible" if not visible else "asked for (--gpus N)"
    if gpus.declared():
        print(f"REHEARSAL: {gpus.said_by()} declares GPUs that are not there; all runs on the CPU")
    elif (job.wanted and not visible) or not (job.wanted or job.ours):
        how = f"{count} processes (gloo)" if count > 1 else "one process"
        more = how_to_get_several(job) if count == 1 and chosen.starts_ranks else ""
        print(f"no GPU is {why}: {job.name} runs on the CPU in {how}{more}", flush=True)


def how_to_get_several(job: Job) -> str:
    """The flag or key by which a job of one process has several on the CPU; empty if none does."""
    if not job.ours:
        return " (several: --processes N)"
    if job.step is None or not job.ranked or job.wanted > 1:  # that many are too many for its cores
        return ""
    return f" (several: --gpus N, in a workflow runtime.gpus.{job.step.gpus}=N)"


def program_of(module: list[str], python: str | None, stdin: bool) -> Program:
    """The program of -m MODULE …; with --python it is another project's, whatever its name."""
    is_step = python is None and module[1].startswith("pipeline.")
    path = sys.executable if python is None else programs.interpreter(python)
    return Program(module, path, is_step, stdin or is_step)


def main(argv: list[str]) -> None:
    """Entry point; see the module."""
    # The options
    parser = argparse.ArgumentParser(
        prog="pipeline.launch",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s [--gpus N] [--threads N] [--log FILE] [--python PATH] [--processes N] "
        "[--stdin] [launch.key=value …] -- -m MODULE …",
    )
    parser.add_argument("--gpus", type=int, default=0, help="GPUs that the job may take")
    parser.add_argument("--threads", type=int, default=gpus.cpu_cores(), help="CPU threads in all")
    parser.add_argument("--log", type=Path, help="file that gets a copy of the output")
    others = parser.add_argument_group("another project's module")
    others.add_argument("--python", help="interpreter of its environment; by default this one")
    others.add_argument("--processes", type=int, help="per machine; by default one per GPU")
    others.add_argument("--stdin", action="store_true", help="its processes share this one's stdin")
    parser.add_argument("settings", nargs="*", help="launch.key=value")

    # The job's words
    before, after = argv, []
    if "--" in argv:
        before, after = argv[: argv.index("--")], argv[argv.index("--") + 1 :]
    options = parser.parse_args(before)
    if len(after) < 2 or after[0] != "-m":
        parser.error("after -- comes what to start: -m MODULE key=value …")

    # The job itself
    program = program_of(after, options.python, options.stdin)
    job = Job(program, options.settings, options.gpus, options.threads, options.processes)
    start_time = time.monotonic()
    status = run(job, options.log)
    if console.is_brief() and job.step and status == 0:
        print(f"{job.step.name}: done in {clock(time.monotonic() - start_time)}", flush=True)
    sys.exit(status)


if __name__ == "__main__":
    run_main(main, own_help=True)
