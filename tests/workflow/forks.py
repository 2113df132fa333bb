"""Modules run as `python -m` does, in forks of a process that has imported what they wait for.

Snakemake imports for a second and a half, and a rank for four. A fork has a folder, an environment,
words and standard streams as a process of its own has, and imports the `pipeline` of its folder.
For Snakemake and ranks whose start, or end by a signal, is not what a test is about: others are
started as people start them, and so is every job of Snakemake.
"""

import atexit
import gc
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

# torch, what a training imports of it, and what tests import beside it
TORCH = ("torch._dynamo", "pydantic", "PIL.Image", "safetensors.torch", "hypothesis", "pytest")
SECONDS = 600  # after which a fork is ended by SIGALRM
Done = subprocess.CompletedProcess[str]


class Forks:
    """A process that has imported some modules, and is forked for each run."""

    def __init__(self, *imports: str) -> None:
        # -P: this folder is not where modules come from
        command = [sys.executable, "-P", __file__, *imports]
        self.server = subprocess.Popen(
            command,
            env=os.environ | {"OMP_NUM_THREADS": "1"},  # torch reads it as it is imported
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        atexit.register(self.close)

    def close(self) -> None:
        """End the process."""
        self.server.communicate()

    def run(self, words: list[str], folder: Path, environment: Mapping[str, str]) -> Done:
        """`python -m` with these words in a folder."""
        return self.run_together(words, folder, [environment])[0]

    def run_together(
        self, words: list[str], folder: Path, environments: Sequence[Mapping[str, str]]
    ) -> list[Done]:
        """A process for each environment, at once; one that fails ends those that still run."""
        assert self.server.stdin and self.server.stdout
        with TemporaryDirectory() as place:
            streams = [
                [str(Path(place, f"{name}{k}")) for name in ("stdout", "stderr")]
                for k in range(len(environments))
            ]
            each = zip(map(dict, environments), streams, strict=True)
            request = [[words, str(folder), *one] for one in each]
            print(json.dumps(request), file=self.server.stdin, flush=True)
            statuses = json.loads(self.server.stdout.readline())
            return [
                subprocess.CompletedProcess(
                    words, status, *(Path(name).read_text() for name in pair)
                )
                for status, pair in zip(statuses, streams, strict=True)
            ]


@cache
def forks(*imports: str) -> Forks:
    """The process with these imports, which ends with this one."""
    return Forks(*imports)


def become(
    words: list[str], folder: str, environment: Mapping[str, str], streams: list[str]
) -> None:
    """Make this process one that was started in `folder`, and run the module in it."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for number, file in enumerate([os.devnull, *streams]):
        os.dup2(os.open(file, os.O_RDWR | os.O_CREAT), number)
    sys.argv = words
    sys.path.insert(0, folder)
    runpy.run_module(words[0], run_name="__main__", alter_sys=True)


def wait_for(processes: list[int]) -> list[int]:
    """Exit statuses of these processes; once one failed, the others get SIGTERM."""
    statuses: dict[int, int] = {}
    while len(statuses) < len(processes):
        process, status = os.wait()
        statuses[process] = os.waitstatus_to_exitcode(status)
        for other in processes if statuses[process] else ():
            if other not in statuses:
                os.kill(other, signal.SIGTERM)
    return [statuses[process] for process in processes]


def serve() -> None:
    """Fork for all processes that a line of standard input describes; print their statuses."""
    for line in sys.stdin:
        processes = []
        for request in json.loads(line):
            if not (process := os.fork()):
                signal.alarm(SECONDS)
                return become(*request)
            processes.append(process)
        print(wait_for(processes), flush=True)


if __name__ == "__main__":
    gc.disable()
    for name in sys.argv[1:]:
        importlib.import_module(name)
    gc.freeze()  # forks end sooner
    gc.enable()
    assert not any(name.partition(".")[0] == "pipeline" for name in sys.modules)
    serve()
