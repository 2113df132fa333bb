"""Several trainings by the same ranks, one after the other: a start costs more than a small one.

Started by torchrun, this module is one of these ranks.
"""

import json
import subprocess
import sys
from contextlib import nullcontext

from pipeline import train
from pipeline.compute.distributed import ranks
from pipeline.training import loop
from tests.conftest import ROOT


def train_on_ranks(world: int, *runs: list[str]) -> str:
    """Train with the words of each run on `world` ranks; returns what they printed."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={world}", "-m", "tests.on_ranks", json.dumps(runs)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


if __name__ == "__main__":
    with ranks("cpu", {}, 60) as group:  # once: a store keeps the addresses of a first group
        loop.ranks = lambda *_: nullcontext(group)
        for words in json.loads(sys.argv[1]):
            train.main(words)
