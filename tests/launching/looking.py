"""A step's module that prints what a process sees of itself, or ends as its first word says."""

import atexit
import json
import os
import signal
import sys
import threading
from pathlib import Path

from pipeline.base.errors import UserError, run_main


def main(argv: list[str]) -> None:
    """Print it, or end."""
    if argv[0] == "user error":
        raise UserError("this is wrong: do that")
    if argv[0] == "reason":
        raise SystemExit("error: rank 3 lost another rank")
    if argv[0] == "failure":
        raise ValueError("unforeseen")
    if argv[0] == "death":
        os.kill(os.getpid(), signal.SIGKILL)
    if argv[0] == "wait":
        signal.pause()

    # Said at the very end, if the last functions run
    atexit.register(print, "the end")
    handlers = {int(n): str(signal.getsignal(n)) for n in signal.valid_signals()}
    facts = {
        "argv": sys.argv,
        "variables": dict(os.environ),
        "leads its session": os.getsid(0) == os.getpid(),
        "files": open_files(),
        "handlers": handlers,
        "blocked": sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, ()))),
        "threads": threading.active_count(),
        "folder": str(Path.cwd()),
        "stdin": sys.stdin.read(),
    }
    print(json.dumps(facts))


def open_files() -> list[int]:
    """Open descriptors, except that by which the folder of descriptors is read."""
    entries = list(Path("/proc/self/fd").iterdir())
    return sorted(int(entry.name) for entry in entries if entry.exists())


if __name__ == "__main__":
    run_main(main)
