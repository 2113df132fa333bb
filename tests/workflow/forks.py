"""Modules run as `python -m` does, in forks of a process that has imported what they wait for.

`snakemake --dry-run` takes two seconds, of which three quarters are imports. A fork has a folder,
an environment, words and standard streams as a process of its own has, and imports the `pipeline`
of its folder. For commands that only look: others are started as people start them.
"""

import atexit
import importlib
import json
import os
import runpy
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory


class Forks:
    """A process that has imported some modules, and is forked for each run."""

    def __init__(self, *imports: str) -> None:
        # -P: this folder is not where modules come from
        command = [sys.executable, "-P", __file__, *imports]
        self.server = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        atexit.register(self.close)

    def close(self) -> None:
        """End the process."""
        self.server.communicate()

    def run(
        self, words: list[str], folder: Path, environment: Mapping[str, str]
    ) -> subprocess.CompletedProcess[str]:
        """`python -m` with these words in a folder."""
        assert self.server.stdin and self.server.stdout
        with TemporaryDirectory() as place:
            streams = [str(Path(place, name)) for name in ("stdout", "stderr")]
            request = [words, str(folder), dict(environment), streams]
            print(json.dumps(request), file=self.server.stdin, flush=True)
            status = int(self.server.stdout.readline())
            return subprocess.CompletedProcess(
                words, status, *(Path(stream).read_text() for stream in streams)
            )


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


def serve() -> None:
    """Fork for each line of standard input, and print the exit status."""
    for line in sys.stdin:
        if not (pid := os.fork()):
            return become(*json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        importlib.import_module(name)
    assert not any(name.partition(".")[0] == "pipeline" for name in sys.modules)
    serve()
