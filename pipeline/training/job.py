"""A training run before its first step."""

from dataclasses import dataclass
from pathlib import Path

from pipeline.config.schema import Config
from pipeline.training.identity import rank_identity
from pipeline.training.start_weights import Start
from pipeline.training.workload import Workload


@dataclass(frozen=True)
class Job:
    """All that is known before the first step."""

    # The experiment
    config: Config
    workload: Workload
    # Its folders
    out: Path
    scratch: Path  # checkpoints, metrics and events of exactly these experiment keys
    # Its first weights
    start: Start | None = None  # None: drawn by the seed

    @property
    def identity(self) -> dict[str, object]:
        """Values that all ranks must share."""
        return rank_identity(self.config, self.workload.about()["sha256"])

    @property
    def snapshots(self) -> Path:
        """Folder of the averages that are stored in training."""
        return self.scratch / "averages"

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole run."""
        return -(-self.config.train.images // self.config.train.batch)
