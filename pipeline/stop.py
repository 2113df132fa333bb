"""Stop all that runs in this folder, saved: `python -m pipeline.stop` or `make stop`.

The engine is told to start nothing more, then every launcher of this machine to let its job save
and leave; the same commands go on from there.
"""

import json
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

from pipeline.base.errors import run_main
from pipeline.base.locks import is_locked
from pipeline.launching import running

ENGINE = Path(".snakemake/pipeline.lock")
PATIENCE = 600  # seconds for ranks to write a checkpoint


def engine() -> int | None:
    """Process id of the snakemake that is at work in this folder."""
    if not is_locked(ENGINE):
        return None
    with suppress(OSError, ValueError):
        return int(json.loads(ENGINE.read_text())["pid"])
    return None


def tell(pid: int) -> bool:
    """SIGTERM, where the process is still there; whether this user may send it."""
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return True


def stop_engine(pid: int) -> bool:
    """Tell the engine to start nothing more; whether that was allowed."""
    allowed = tell(pid)
    does = "starts nothing more" if allowed else "is another user's: ask them to stop it"
    print(f"snakemake (process {pid}) {does}")
    return allowed


def stop_launcher(entry: running.Entry) -> bool:
    """Tell a job's launcher to let it save; whether that was allowed."""
    allowed = tell(entry.pid)
    if allowed:
        print(f"stopping {entry.module} {entry.out} (process {entry.pid})", flush=True)
    else:
        print(f"{entry.module} (process {entry.pid}) is another user's: ask them to stop it")
    return allowed


def stop_launchers(seconds: float) -> dict[Path, bool]:
    """Stop every launcher of this machine, those that begin meanwhile too: {file: allowed}.

    Returns when those that may be stopped have ended, or after `seconds`.
    """
    told: dict[Path, bool] = {}
    until = time.monotonic() + seconds
    while True:
        here = [entry for entry in running.entries() if entry.is_here()]
        told |= {entry.path: stop_launcher(entry) for entry in here if entry.path not in told}
        if not any(told[entry.path] for entry in here) or time.monotonic() > until:
            return told
        time.sleep(0.1)


def main(argv: list[str]) -> None:
    """Stop, wait, say what was stopped; status 1 where something did not end."""
    pid = engine()
    allowed = pid is None or stop_engine(pid)
    elsewhere = [entry for entry in running.entries() if not entry.is_here()]
    for entry in elsewhere:
        print(f"{entry.module} runs on {entry.host}: run `make stop` there, or cancel its job")
    told = stop_launchers(PATIENCE)
    left = [entry for entry in running.entries() if told.get(entry.path)]
    for entry in left:
        print(f"{entry.module} (process {entry.pid}) is still there: kill -KILL {entry.pid}")
    if not told and not elsewhere and pid is None:
        print("nothing runs in this folder")
    sys.exit(0 if allowed and all(told.values()) and not left else 1)


if __name__ == "__main__":
    run_main(main)
