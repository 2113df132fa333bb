"""Start a step with its processes, threads and devices; pass signals on; leave nobody behind.

    python -m pipeline.launch --gpus 4 --log LOG -- -m pipeline.train config=… out=…

With several processes the command that runs is `torchrun --standalone --nproc-per-node=N …`.
What the step prints goes to the terminal and to the log. Exit status: the step's own, or 75 where
a signal stopped it after it had saved its state.
"""

import argparse
import importlib
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import IO

from pipeline import gpus
from pipeline.config import load_step
from pipeline.errors import EXIT_RESUMABLE, UserError, run_main
from pipeline.keys import Config
from pipeline.prctl import die_with_parent
from pipeline.sharing import processes

KNOWN = (*Config.model_fields, "experiments", "config")  # words that are no path of a step
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
SHARED_STEPS = ("pipeline.train", "pipeline.sample")  # steps that run as several ranks


def child_environment(threads: int, count: int, setting: str | int) -> dict[str, str]:
    """The environment of the step: device order, a store of the ranks' own, threads per process.

    The engine exports every THREADS variable with the threads of the whole job; ranks that each
    take that many for one library alone (MKL) ran ten times slower on two cores.
    """
    environment = dict(os.environ)
    environment.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    # Ranks that start again must not find the addresses of the dead in the agent's store.
    environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    share = max(1, min(threads, gpus.cpu_cores()) // count)
    for name in THREADS:
        environment[name] = str(share if setting == "auto" else setting)
    return environment


def check_torch(visible: list[str], device: str) -> None:
    """Raise UserError where GPUs are visible but this build of torch cannot use them."""
    import torch

    if visible and device == "auto" and torch.cuda.device_count() == 0:
        raise UserError(
            f"GPUs {','.join(visible)} are visible but torch {torch.__version__} cannot use them: "
            "install its CUDA build, or give runtime.device=cpu"
        )


def command(module: list[str], count: int, restarts: int = 0) -> list[str]:
    """Python itself for one process; torchrun (pipeline.torchrun) for several, or for restarts."""
    if count == 1 and restarts == 0:
        return [sys.executable, *module]
    torchrun = [sys.executable, "-m", "pipeline.torchrun", "--standalone"]
    torchrun.append("--signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1")
    # Ranks that were told to stop get all the time that a checkpoint takes.
    torchrun += ["--shutdown-timeout=3600", f"--max-restarts={restarts}"]
    return [*torchrun, f"--nproc-per-node={count}", *module]


def relay(source: IO[bytes], log: IO[bytes] | None) -> None:
    """Copy what the step prints to our stdout and the log until it has closed its end."""
    while chunk := os.read(source.fileno(), 65536):
        if log:
            log.write(chunk)
            log.flush()
        try:
            sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()
        except BrokenPipeError:  # whoever read our output is gone; what is left of it goes nowhere
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, sys.stdout.fileno())
            os.close(nowhere)


def _die_with_us() -> None:
    """In the child: SIGTERM when this launcher dies in any way, so that ranks save and leave."""
    die_with_parent(signal.SIGTERM)


def supervise(words: list[str], environment: Mapping[str, str], log: Path | None) -> int:
    """Run the command in a session of its own; returns its exit status.

    SIGTERM, SIGINT and SIGUSR1 are passed on as SIGTERM, so that the ranks save and leave; a
    second one kills. Afterwards whatever is left of the session is killed.
    """
    stream = log.open("wb") if log else None
    child = subprocess.Popen(
        words,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=_die_with_us,
    )
    signals: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        signals.append(number)
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGTERM if len(signals) == 1 else signal.SIGKILL)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, forward)
    assert child.stdout is not None
    relay(child.stdout, stream)
    status = child.wait()
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    if signals and status != 0:
        return EXIT_RESUMABLE
    return status if status >= 0 else 128 - status


def main(argv: list[str]) -> None:
    """Entry point; see the module."""
    parser = argparse.ArgumentParser(prog="pipeline.launch", description=__doc__)
    parser.add_argument("--gpus", type=int, default=0, help="GPUs that the job may take")
    parser.add_argument("--threads", type=int, default=gpus.cpu_cores(), help="CPU threads in all")
    parser.add_argument("--log", type=Path, help="file that gets a copy of the output")
    parser.add_argument("module", nargs="+", help="-- -m MODULE key=value …")
    options = parser.parse_args(argv)
    if options.module[0] != "-m" or len(options.module) < 2:
        parser.error("after -- comes what to start: -m MODULE key=value …")
    name, arguments = options.module[1], options.module[2:]
    own = [w for a in arguments if "." not in (w := a.partition("=")[0]) and w not in KNOWN]
    config, _ = load_step(arguments, own)
    visible = gpus.visible()
    count, restarts = 1, 0
    if name in SHARED_STEPS:
        step = importlib.import_module(name)
        count = processes(options.gpus, config.launch.launcher, config.runtime.device, visible)
        restarts = config.launch.max_restarts
        check_torch(visible, config.runtime.device)
        step.preflight(arguments, count)
    if options.gpus and not visible:
        ranks = f"{count} processes (gloo)" if count > 1 else "one process"
        print(f"no GPU is visible: {name} runs on the CPU in {ranks}", flush=True)
    environment = child_environment(options.threads, count, config.launch.threads)
    words = command(options.module, count, restarts)
    if options.log:
        options.log.parent.mkdir(parents=True, exist_ok=True)
    print(f"$ {shlex.join(words[:6])} …  (OMP_NUM_THREADS={environment['OMP_NUM_THREADS']})")
    sys.stdout.flush()
    sys.exit(supervise(words, environment, options.log))


if __name__ == "__main__":
    run_main(main)
