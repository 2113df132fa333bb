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

from pipeline import running
from pipeline.errors import run_main
from pipeline.locks import is_locked

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


def wait(what: list[running.Entry], seconds: float) -> list[running.Entry]:
    """Those that are still alive after they all had `seconds` to end."""
    until = time.monotonic() + seconds
    while (left := [entry for entry in what if entry.is_alive()]) and time.monotonic() < until:
        time.sleep(0.1)
    return left


def main(argv: list[str]) -> None:
    """Stop, wait, say what was stopped; status 1 where something did not end."""
    found = running.entries()
    here, elsewhere = ([e for e in found if e.is_here() == side] for side in (True, False))
    for entry in elsewhere:
        print(f"{entry.module} runs on {entry.host}: run `make stop` there, or cancel its job")
    refused = False
    if (pid := engine()) is not None:
        refused = not tell(pid)
        does = "is another user's: ask them to stop it" if refused else "starts nothing more"
        print(f"snakemake (process {pid}) {does}")
    mine = []
    for entry in here:
        if tell(entry.pid):
            mine.append(entry)
            print(f"stopping {entry.module} {entry.out} (process {entry.pid})", flush=True)
        else:
            refused = True
            print(f"{entry.module} (process {entry.pid}) is another user's: ask them to stop it")
    for entry in (left := wait(mine, PATIENCE)):
        print(f"{entry.module} (process {entry.pid}) is still there: kill -KILL {entry.pid}")
    if not found and pid is None:
        print("nothing runs in this folder")
    sys.exit(1 if left or refused else 0)


if __name__ == "__main__":
    run_main(main)
