"""How a step was started: by a launcher, as a rank, or by hand with the name of a launcher."""

import os
import sys
from collections.abc import Sequence

from pipeline.base.processes import LAUNCHED
from pipeline.compute import gpus
from pipeline.config.load import load_step
from pipeline.config.words import parse_overrides
from pipeline.launching import slurm
from pipeline.launching.launchers import launcher
from pipeline.steps import BY_MODULE


def hand_over(module: str, argv: Sequence[str], words: Sequence[str]) -> None:
    """Become `python -m pipeline.launch … -- -m pipeline.STEP …` if the words ask for it.

    Returns if they name no launcher, or `none`, or if a launcher has started this process:
    torchrun, submitit, the project's own, or srun with several tasks, which then are the ranks.
    `words` are the step's own words. The job gets the step's runtime.gpus, or as many GPUs as
    there are.
    """
    # Already a rank, or the one process of a launcher
    if LAUNCHED in os.environ:
        return
    os.environ.update(slurm.ranks_of_step())
    if "RANK" in os.environ:
        return
    section = parse_overrides(argv).get("launch")
    if not isinstance(section, dict) or "launcher" not in section:
        return

    # The launcher by name
    config, _ = load_step(list(argv), words)
    named = launcher(config.launch)
    if not named.starts_ranks:
        return

    # No more than visible
    num_gpus = int(getattr(config.runtime.gpus, BY_MODULE[module].gpus))
    if named.leases_gpus:
        nodes = slurm.num_nodes() if named.is_started_by_srun(config.launch) else 1
        num_gpus = min(num_gpus, nodes * gpus.default_processes())

    # Become the launcher
    command = [sys.executable, "-m", "pipeline.launch", "--gpus", str(num_gpus), "--", "-m", module]
    os.execv(sys.executable, [*command, *argv])
