"""The jobs that run, by the files in results/: `python -m pipeline.status` or `make status`.

It needs no GPU and no process of the job, so it works over ssh and on a login node that sees the
same folder.
"""

import re
import shutil
import sys
import time
from contextlib import suppress
from pathlib import Path

from pipeline.base.errors import run_main
from pipeline.base.progress import clock, read_rows
from pipeline.launching import running
from pipeline.reporting.tables import Cell, text_table

# How logs are read
TAIL = 8192  # bytes of a log that are looked at
PROGRESS = re.compile(r"^[\w ,]+: .*([\d,]+ [a-z]+/s\b|left)")
COLUMNS = {
    "host": "host",
    "step": "step",
    "out": "making",
    "gpus": "GPUs",
    "processes": "ranks",
    "running": "running",
    "progress": "progress",
    "use": "GPU use",
    "memory": "memory",
}

TEXT_COLUMNS = {"host", "step", "out", "gpus", "progress"}  # may be shortened


def progress(entry: running.Entry) -> str:
    """The last progress line of a job's log, without the step's name; empty if there is none."""
    # A log of this job's
    log = Path(entry.log or "")
    if not log.is_file() or log.stat().st_mtime < entry.started:  # an earlier job's
        return ""
    # Its end
    with log.open("rb") as stream:
        stream.seek(max(0, log.stat().st_size - TAIL))
        lines = stream.read().decode(errors="replace").splitlines()
    progress_lines = [line.partition(": ")[2] for line in lines if PROGRESS.match(line)]
    return " ".join(progress_lines[-1].split()) if progress_lines else ""


def measured(entry: running.Entry) -> dict[str, str]:
    """Progress, GPU utilisation and peak memory of a training, from its metrics."""
    # Metrics it may have written
    written: dict[Path, float] = {}
    with suppress(OSError):  # what a job makes is not always a path
        files = Path(entry.out).glob("checkpoints/*/metrics.jsonl") if entry.out else ()
        written = {path: path.stat().st_mtime for path in files}
    newest = max(written, key=lambda path: written[path], default=None)
    if newest is None or written[newest] < entry.started:  # an earlier job's
        return {}

    # Its latest numbers
    rows = read_rows(newest)
    use = [r["gpu_utilisation"] for r in rows if r.get("gpu_utilisation") is not None]
    peak = [r["peak_memory_gb"] for r in rows if r.get("peak_memory_gb") is not None]
    columns = {"use": f"{use[-1]:.0%}"} if use else {}
    columns |= {"memory": f"{peak[-1]:.1f} GB"} if peak else {}

    # Its progress
    last = rows[-1] if rows else {}
    return columns | (
        {"progress": f"step {last['step']} {last['images_per_s']:.0f} images/s"} if last else {}
    )


def row(entry: running.Entry) -> dict[str, Cell]:
    """One job as a row of COLUMNS."""
    # Alive or silent
    text, numbers = "", dict[str, str]()
    with suppress(OSError):  # files of others may be private, and files go
        text = progress(entry)
        numbers = measured(entry)
    if not entry.is_here() and not entry.is_alive():
        text = f"SILENT for {clock(entry.silent_seconds())}: look at {entry.host}"

    # Numbers and progress
    return {
        **numbers,
        "host": entry.host,
        "step": entry.module.removeprefix("pipeline."),
        "out": entry.out,
        "gpus": ",".join(entry.gpus) or "-",
        "processes": entry.processes,
        "running": clock(max(0.0, time.time() - entry.started)),  # the clocks of machines differ
        "progress": text or numbers.get("progress", "starting"),
    }


def main(argv: list[str]) -> None:
    """Print one line per job."""
    rows = [row(entry) for entry in running.entries()]
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 1000
    lines = text_table(rows, COLUMNS, TEXT_COLUMNS, width)
    print("\n".join(lines) if rows else "nothing runs in this folder")


if __name__ == "__main__":
    run_main(main)
