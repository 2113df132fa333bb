"""Whether the results in this folder are of the pack that the keys name."""

import os
import sys
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from snakemake_interface_executor_plugins.settings import ExecMode

from pipeline.base.errors import UserError
from pipeline.config import paths
from pipeline.config.schema import Config
from pipeline.data.pack import Record


def pack_problem(config: Config, environment: Mapping[str, str] = os.environ) -> str:
    """Why results here may be of another image set, in a sentence; empty if nothing says so.

    They are of the pack that results/data/<data>.json describes. If no variable or key names a
    place of packs, nothing is compared.
    """
    # The two that should agree
    file = paths.record_file(config)
    try:
        folder = paths.pack_folder(config, environment)
    except UserError:
        return ""
    if not file.exists():
        return ""
    record = Record.read(file)

    # No pack, or another one
    place = "point IMAGENET_DIR, data.pack_dir or data.path at the pack that it describes"
    if not (folder / "manifest.json").exists():
        return (
            f"there is no pack in {folder}, but the results here are of one ({file}, sha256 "
            f"{short(record)}): {place}, or run `make data`, which makes a pack of the images at "
            "hand (nothing else runs again if they are the same)"
        )
    pack = Record.read(folder / "manifest.json")
    if pack.sha256 == record.sha256:
        return ""
    return (
        f"the pack in {folder} (sha256 {short(pack)}) is not the one that the results here are of "
        f"({file}, sha256 {short(record)}): {place}, or run `make data`, after which all results "
        "are made again of the pack that is there"
    )


def short(record: Record) -> str:
    """The beginning of the sha256 of a pack's images."""
    return record.sha256.images[:12]


def check_pack(workflow: Any, maker: str, find_problem: Callable[[], str]) -> None:
    """Stop before the first job unless results here are of the pack that the keys name.

    `find_problem` says in a sentence why they are not; the rule `maker` would make the pack anew.
    Called for each rule that reads the pack, while Snakemake finds out which jobs there are; if
    none has to run, it asks nothing later. Dry runs are only told. Prints one sentence and exits
    with status 2.
    """
    # What makes the pack anew
    if workflow.dag_settings.forceall or maker in workflow.dag_settings.forcerun:
        return
    stop(workflow, find_problem)


def stop(workflow: Any, find_problem: Callable[[], str]) -> None:
    """Stop before the first job if there is a problem: a sentence, or a UserError.

    Dry runs are only told. Prints one sentence and exits with status 2.
    """
    # Runs no job
    if workflow.executor_plugin is None or workflow.exec_mode != ExecMode.DEFAULT:
        return

    # Told, or stopped
    try:
        problem = find_problem()
    except UserError as error:  # such as a damaged manifest or record
        problem = str(error)
    if problem and not workflow.dryrun:
        print(f"error: {problem}", file=sys.stderr)
        sys.exit(2)
    if problem:
        note(problem)


@cache
def note(problem: str) -> None:
    """Print a problem once."""
    print(f"note: {problem}", file=sys.stderr, flush=True)
