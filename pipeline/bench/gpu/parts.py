"""The parts by name, and the command: `make bench-gpu`, or

python -m pipeline.bench gpu [--force] [--no-record] [PART ...]

Each part runs in a separate process and adds its record when it ends, so that a run that was
stopped goes on with the next part: a part whose record of this card and this code exists is left
out. Exit status: 0; 1 if a part failed; 2 without a GPU.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pipeline.base.errors import EXIT_USER_ERROR
from pipeline.base.files import read_json
from pipeline.bench import record
from pipeline.bench.gpu import data, profile, sampling, scoring, training
from pipeline.bench.gpu.scale import Scale, Unavailable

LIMIT_S = 540  # of a part
NO_GPU = (
    "bench gpu measures one CUDA GPU, and torch sees none here: run it on a machine with one "
    "(`nvidia-smi` lists its GPUs); without a GPU, `make bench` measures the CPU"
)

# Those of the promises come first
PARTS: dict[str, Callable[[Scale], dict[str, Any]]] = {
    "train": training.at_best,
    "profile": profile.of_a_step,
    "sampling": sampling.by_solver,
    "train-ways": training.by_way,
    "train-precision": training.by_precision,
    "train-micro-batch": training.by_micro_batch,
    "loader": data.loading,
    "scoring": scoring.by_extractor,
    "packing": data.packing,
}


def record_name(part: str) -> str:
    """Name of a part's record."""
    return f"gpu-{part}"


def is_measured(part: str, folder: Path = record.FOLDER) -> bool:
    """Whether a record of the part by this code on this card lies in `folder`."""
    path = folder / f"{record_name(part)}.json"
    if not path.exists():
        return False
    card, code = record.hardware()["gpu"], record.code()
    runs = read_json(path)["runs"]
    return any(run["hardware"]["gpu"] == card and run.get("code") == code for run in runs)


def measure(part: str, scale: Scale, keep: bool, folder: Path = record.FOLDER) -> None:
    """Run one part, print it, and keep its record if `keep`."""
    try:
        outcome = PARTS[part](scale)
    except Unavailable as reason:
        print(f"{part}: n/a: {reason}", flush=True)
        return
    record.show(outcome)
    if keep:
        print(f"record: {record.write(record_name(part), outcome, folder)}", flush=True)


def run_apart(part: str, words: list[str], seconds: float = LIMIT_S) -> str | None:
    """Run a part in a separate process; why it failed, or None."""
    command = [sys.executable, "-m", "pipeline.bench", "gpu", *words, part]
    try:
        status = subprocess.run(command, timeout=seconds, cwd=record.ROOT).returncode
    except subprocess.TimeoutExpired:
        return f"it took more than {seconds:.0f} s"
    return f"its process ended with status {status}" if status else None


def main(argv: list[str]) -> int:
    """The command; its exit status."""
    # The options
    parser = argparse.ArgumentParser(prog="pipeline.bench gpu", description="measure one GPU")
    names = ", ".join(PARTS)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], metavar="PART", help=names)
    parser.add_argument("--force", action="store_true", help="measure what has a record, too")
    parser.add_argument("--no-record", action="store_true", help="print only")
    options = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print(f"error: {NO_GPU}", file=sys.stderr, flush=True)
        return EXIT_USER_ERROR
    # What is left to do
    chosen = options.parts or list(PARTS)
    todo = [part for part in chosen if options.force or not is_measured(part)]
    for part in (part for part in chosen if part not in todo):
        print(f"{part}: a record of this card and code exists (--force measures it again)")
    # One here, several apart
    if len(chosen) == 1 and todo:
        measure(todo[0], Scale(torch.device("cuda", 0)), keep=not options.no_record)
        return 0
    words = ["--force", *(["--no-record"] if options.no_record else [])]
    failed = {part: reason for part in todo if (reason := run_apart(part, words)) is not None}
    for part, reason in failed.items():
        print(f"{part}: FAILED: {reason}", file=sys.stderr, flush=True)
    return 1 if failed else 0
