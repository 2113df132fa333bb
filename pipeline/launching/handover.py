"""How a step was started: by a launcher, as a rank, or by hand with the name of a launcher."""

import os
import sys
from collections.abc import Sequence

from pipeline.config.load import load_step
from pipeline.config.words import parse_overrides
from pipeline.launching import gpus, slurm
from pipeline.launching.commands import LAUNCHED


def hand_over(module: str, argv: Sequence[str], words: Sequence[str]) -> None:
    """Become `python -m pipeline.launch … -- -m pipeline.STEP …` where the words ask for it.

    Returns where it names no launcher, or `none`, or where a launcher has started this process:
    torchrun, submitit, the project's own, or srun with several tasks, which then are the ranks.
    `words` are the step's own words. The job gets the step's runtime.gpus, as far as there are
    that many.
    """
    os.environ.update(slurm.ranks_of_step())
    if "RANK" in os.environ or LAUNCHED in os.environ:
        return
    named = parse_overrides(argv).get("launch", {}).get("launcher", "none")
    if named == "none":
        return
    config, _ = load_step(list(argv), words)
    wanted = int(getattr(config.runtime.gpus, module.rpartition(".")[2]))
    if named != "submitit_slurm":
        nodes = slurm.num_nodes() if slurm.over_nodes(config.launch) else 1
        wanted = min(wanted, nodes * gpus.default_processes())
    command = [sys.executable, "-m", "pipeline.launch", "--gpus", str(wanted), "--", "-m", module]
    os.execv(sys.executable, [*command, *argv])
