"""The part of an experiment that the Snakefile asks for, whatever it trains on."""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.base.errors import UserError
from pipeline.config import paths
from pipeline.config.schema import Config
from pipeline.config.stages import settings_words, stage_keys
from pipeline.workflow.current_pack import check_pack
from pipeline.workflow.trainings import by_rule


class Shared(ABC):
    """Files, keys and settings that all kinds of experiments have."""

    rules: str  # file of the rules beside train
    maker: str  # rule that makes the pack
    pack_env = ""  # the variable that the rules which read the pack need

    def __init__(self, config: Config, guiding: Iterable[Config] = ()) -> None:
        """`guiding`: configurations of the trainings of networks that guide."""
        # The configuration, and what steps get of it that re-runs nothing
        self.config = config
        self.runtime = config.runtime
        self.settings = settings_words(config)
        # Files
        self.data = paths.data_name(config)
        self.record = str(paths.record_file(config))
        self.run = str(paths.run_folder(config))
        self.remade = {self.maker: (self.record, "data")}  # rule: its file, target of make
        self.trainings = by_rule([config, *guiding])
        self.weights = self.trainings["train"].weights

    def keys(self, stage: str) -> str:
        """The keys that `stage` reads, as canonical JSON: the parameter that makes it run again."""
        return json.dumps(stage_keys(self.config, stage), sort_keys=True)

    @abstractmethod
    def pack_problem(self) -> str:
        """Why results here are not of the pack that the keys name, or empty."""

    @abstractmethod
    def banner(self) -> str:
        """One line: experiment and data."""

    def late_problem(self) -> str:
        """Why a step after the training would be refused, or empty: what no key says before."""
        return ""

    def current_record(self, workflow: Any) -> str:
        """The record of the pack; stops before the first job if results here are of another one."""
        check_pack(workflow, self.maker, self.pack_problem)
        return self.record

    @cached_property
    def outgrown(self) -> list[str]:
        """Files to ask for, since trainings by other keys have left others: see Training."""
        return [file for training in self.trainings.values() for file in training.outgrown()]

    def num_jobs(self, stage: str) -> int:
        """Jobs of a stage that can run side by side."""
        return 1

    def threads(self, stage: str, workflow: Any) -> int:
        """CPU threads of a stage's job: four per GPU, fewer if cores are scarce.

        Jobs that can run side by side on the GPUs of the run share its cores. `stage` is a name
        below runtime.gpus.
        """
        machine = dict(workflow.global_resources.unwrapped_items())
        num_gpus = getattr(self.runtime.gpus, stage)
        total, cores = machine.get("gpu") or num_gpus, machine.get("_cores") or 4 * num_gpus
        num_gpus = min(num_gpus, total)
        abreast = max(1, min(self.num_jobs(stage), total // num_gpus))
        return max(1, min(4 * num_gpus, cores // abreast))


def existing(key: str, file: str | None, kind: str = "file of weights") -> list[str]:
    """The file that a key names, as an input of a rule; none if it is null.

    Raises UserError if there is no such file: Snakemake would take old results for new.
    """
    if file is not None and not Path(file).is_file():
        raise UserError(f"{key}={file} is not a file: give a {kind}, or null")
    return [] if file is None else [file]
