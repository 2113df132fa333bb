"""Steps and tests by several ranks of this machine; several trainings by the same ranks.

Started by `on_ranks`, this module is one of the ranks that train by each list of words.
"""

import json
import os
import sys
from contextlib import nullcontext

import psutil
import torch.distributed as dist

from pipeline import train
from pipeline.compute.distributed import ranks
from pipeline.training import loop
from tests.conftest import ROOT
from tests.workflow.forks import TORCH, forks


def on_ranks(world: int, *words: str) -> str:
    """`python -m` with these words as each of `world` ranks; returns what they printed.

    They get what torchrun gives its ranks, a store and variables, and end as there if one fails,
    but are forks of a process that has torch: torchrun and two ranks import for ten seconds.
    """
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "OMP_NUM_THREADS": "1"}
    place |= {f"TORCHELASTIC_{name}": value for name, value in AGENT.items()}
    place |= {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
    environments = [
        os.environ | place | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world)
    ]
    done = forks(*TORCH).run_together(list(words), ROOT, environments)
    output = "".join(rank.stdout + rank.stderr for rank in done)
    assert not any(rank.returncode for rank in done), output
    return output


# Of torchrun, which keeps the store
AGENT = {"USE_AGENT_STORE": "True", "RUN_ID": "test", "RESTART_COUNT": "0", "MAX_RESTARTS": "0"}


def train_on_ranks(world: int, *runs: list[str]) -> str:
    """Train with the words of each run on `world` ranks; returns what they printed."""
    return on_ranks(world, "tests.on_ranks", json.dumps(runs))


def processes_of_ranks() -> list[psutil.Process]:
    """The ranks that run."""
    return psutil.Process(forks(*TORCH).server.pid).children()


if __name__ == "__main__":
    with ranks("cpu", {}, 60) as group:  # once: a store keeps the addresses of a first group
        loop.ranks = lambda *_: nullcontext(group)
        for words in json.loads(sys.argv[1]):
            train.main(words)
