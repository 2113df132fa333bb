"""A training run before its first step."""

from dataclasses import dataclass
from pathlib import Path

from pipeline.config.schema import Config
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

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole run."""
        return -(-self.config.train.images // self.config.train.batch)
