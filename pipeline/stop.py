"""Save and stop all that runs in this folder: `python -m pipeline.stop` or `make stop`.

Snakemake is told to start nothing more, then every launcher on this machine to let its job save
and exit; the same commands resume.
"""

import json
import os
import signal
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil

from pipeline.base.errors import run_main
from pipeline.base.locks import is_locked
from pipeline.launching import running

SNAKEMAKE_LOCK = Path(".snakemake/pipeline.lock")
MAX_WAIT = 600  # seconds for ranks to write a checkpoint


def snakemake() -> tuple[int, str] | None:
    """Process id and host of the snakemake that works in this folder, if one does."""
    if not is_locked(SNAKEMAKE_LOCK):
        return None
    with suppress(OSError, ValueError, KeyError):
        holder = json.loads(SNAKEMAKE_LOCK.read_text())
        return int(holder["pid"]), str(holder.get("host", socket.gethostname()))
    return None


def terminate(pid: int) -> bool:
    """Send SIGTERM, if the process still exists; returns whether this user may send it."""
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return True


def stop_snakemake(pid: int, host: str) -> bool:
    """Tell Snakemake to start nothing more; returns whether that was allowed."""
    if host != socket.gethostname():  # a process of that number here is another one
        print(f"snakemake (process {pid}) runs on {host}: run `make stop` there")
        return False
    allowed = terminate(pid)
    does = "starts nothing more" if allowed else "is another user's: ask them to stop it"
    print(f"snakemake (process {pid}) {does}")
    return allowed


def stop_launcher(entry: running.Entry) -> bool:
    """Tell a job's launcher to let it save; returns whether that was allowed."""
    allowed = terminate(entry.pid)
    if allowed:
        print(f"stopping {entry.module} {entry.out} (process {entry.pid})", flush=True)
    else:
        print(f"{entry.module} (process {entry.pid}) is another user's: ask them to stop it")
    return allowed


def has_jobs(snakemake: int | None) -> bool:
    """Whether processes of Snakemake are left: jobs, whose launchers may not be known yet."""
    with suppress(psutil.Error):
        return snakemake is not None and bool(psutil.Process(snakemake).children())
    return False


def stop_launchers(seconds: float, snakemake: int | None = None) -> dict[Path, bool]:
    """Stop every launcher on this machine, also those that start meanwhile: {file: allowed}.

    `snakemake`: process id of one that was told to start nothing more; the jobs that it has just
    started are waited for. Returns when those that may be stopped have ended, or after `seconds`.
    """
    # Jobs may start meanwhile
    allowed: dict[Path, bool] = {}
    until = time.monotonic() + seconds
    while True:
        entries = [entry for entry in running.entries() if entry.is_here()]
        allowed |= {
            entry.path: stop_launcher(entry) for entry in entries if entry.path not in allowed
        }
        at_work = any(allowed[entry.path] for entry in entries) or has_jobs(snakemake)
        if not at_work or time.monotonic() > until:
            return allowed
        time.sleep(0.1)


def main(argv: list[str]) -> None:
    """Stop, wait, say what was stopped; status 1 if something did not end."""
    # Nothing new starts
    engine = snakemake()
    allowed = engine is None or stop_snakemake(*engine)

    # Other machines
    elsewhere = [entry for entry in running.entries() if not entry.is_here()]
    for entry in elsewhere:
        print(f"{entry.module} runs on {entry.host}: run `make stop` there, or cancel its job")

    # Jobs on this machine
    stopped = stop_launchers(MAX_WAIT, engine[0] if engine and allowed else None)
    remaining = [entry for entry in running.entries() if stopped.get(entry.path)]
    for entry in remaining:
        print(f"{entry.module} (process {entry.pid}) is still there: kill -KILL {entry.pid}")

    # How it went
    if not stopped and not elsewhere and engine is None:
        print("nothing runs in this folder")
    sys.exit(0 if allowed and all(stopped.values()) and not remaining else 1)


if __name__ == "__main__":
    run_main(main)
