"""An experiment as the Snakefile sees it: keys, settings and files of each stage."""

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.base.errors import UserError
from pipeline.config import paths
from pipeline.config.load import layered, resolve_resolution, validate
from pipeline.config.samplers import by_sampler, check_guidance, class_numbers
from pipeline.config.schema import Config, Guide
from pipeline.config.stages import settings_words, stage_keys
from pipeline.config.workloads import TOKENS, check_solver
from pipeline.images.sources.find import resolve_image_set
from pipeline.training.milestones import check_planned
from pipeline.workflow.selection import Selection, all_recipes
from pipeline.workflow.trainings import by_rule, guide_config, guide_file


class Experiment:
    """One resolved experiment, as the Snakefile sees it."""

    def __init__(self, files: Mapping[str, Any], command_line: Mapping[str, Any]) -> None:
        """`files`: config.yaml and those of --configfile; `command_line`: --config."""
        tree = layered(files, command_line)
        # The configuration, and what steps get of it that re-runs nothing.
        self.config: Config = resolve_image_set(validate(tree))
        self.runtime = self.config.runtime
        self.settings = settings_words(self.config)
        # Files that all samplers share.
        self.data = paths.data_name(self.config)
        self.record = str(paths.record_file(self.config))
        self.reference = str(paths.reference_file(self.config))
        self.run = str(paths.run_folder(self.config))
        guiding = {
            guide: guide_config(files, command_line, self.config, guide)
            for guide in all_recipes(self.config)
        }
        self.guiding = {guide: str(guide_file(c, guide)) for guide, c in guiding.items()}
        self.trainings = by_rule([self.config, *guiding.values()])
        self.weights = self.trainings["train"].weights
        self.selection = Selection(self.config, self.guiding) if self.config.select else None
        chosen = [f"choice={self.selection.choice}"] if self.selection else []
        if self.config.evaluate.milestones:
            check_planned(self.config)
        self.milestones = f"{self.run}/milestones/curve.jsonl"
        self.scored_milestones = [self.milestones] if self.config.evaluate.milestones else []
        chosen += [f"milestones={file}" for file in self.scored_milestones]
        self.report_settings = shlex.join([*shlex.split(self.settings), *chosen])
        self.extractor = str(paths.extractor_file(self.config))
        self.given_extractor = existing("evaluate.weights", self.config.evaluate.weights)
        # Samplers, and the files of each set of samples.
        self.samplers = by_sampler(self.config)  # the configuration of each, by the sampler's name
        self.first_sampler = next(iter(self.samplers))
        self.sampled_weights = {k: str(paths.weights_file(c)) for k, c in self.samplers.items()}
        if not self.config.model.class_conditional:
            check_classes(self.config, None)
        self.guides = {name: self.guide(name) for name in self.samplers}
        sets = [(config, s) for config in self.samplers.values() for s in config.sample.seeds]
        self.samples = [str(paths.samples_folder(config, seed)) for config, seed in sets]
        self.metrics = [str(paths.metrics_file(config, seed)) for config, seed in sets]
        # IMAGENET_DIR if the rules that read images, or the pack, need it
        self.images_env = "IMAGENET_DIR" if paths.images_need_imagenet_dir(self.config) else ""
        self.pack_env = "IMAGENET_DIR" if paths.pack_needs_imagenet_dir(self.config) else ""
        self.resolution_source = resolve_resolution(tree, os.environ)[1]

    def keys(self, stage: str, sampler: str | None = None) -> str:
        """The keys that `stage` reads, as canonical JSON: the parameter that makes it run again.

        `sampler`: the name of the one whose keys stand in `sample`.
        """
        config = self.samplers[sampler] if sampler else self.config
        return json.dumps(stage_keys(config, stage), sort_keys=True)

    def sample_settings(self, sampler: str) -> str:
        """Places, runtime and launch of a sampler, with the file of a guide that a rule trains."""
        files = self.guides[sampler] if self.samplers[sampler].sample.guide in self.guiding else []
        words = [f"guide={file}" for file in files]
        words += [f"choice={file}" for file in self.choice(sampler)]
        return shlex.join([*shlex.split(self.settings), *words])

    @property
    def milestones_settings(self) -> str:
        """Places, runtime and launch of rule milestones, with the file of a trained guide."""
        guide = self.samplers[self.first_sampler].sample.guide
        files = self.guides[self.first_sampler] if guide in self.guiding else []
        words = [f"guide={file}" for file in files]
        return shlex.join([*shlex.split(self.settings), *words])

    @property
    def milestones_seed(self) -> int:
        """The seed of rule milestones: the first one of the first sampler."""
        return self.samplers[self.first_sampler].sample.seeds[0]

    def choice(self, sampler: str) -> list[str]:
        """The file of rule `select`'s choice, if this sampler takes it."""
        selected = self.samplers[sampler].sample.selected
        return [self.selection.choice] if self.selection and selected else []

    @cached_property
    def outgrown(self) -> list[str]:
        """Files to ask for, since trainings by other keys have left others: see Training."""
        return [file for training in self.trainings.values() for file in training.outgrown()]

    def guide(self, sampler: str) -> list[str]:
        """The file of the guiding weights, if this sampler has one.

        Raises UserError if the solver is not for the network, or it is to guide itself and cannot.
        """
        sample, config = self.samplers[sampler].sample, self.config
        check_solver(sample, config.workload == TOKENS)
        if not sample.selected:  # else by Selection
            check_guidance(sample, config.model.class_conditional, config.train.label_dropout)
        if sample.guide is None or not sample.may_guide:
            return []
        if isinstance(sample.guide, Guide):
            return [self.guiding[sample.guide]]
        if sample.guide in self.weights:
            return [sample.guide]
        return existing("sample.guide", sample.guide)

    def threads(self, stage: str, workflow: Any) -> int:
        """CPU threads of a stage's job: four per GPU, fewer if cores are scarce.

        Jobs that can run side by side on the GPUs of the run share its cores.
        """
        machine = dict(workflow.global_resources.unwrapped_items())
        num_gpus = getattr(self.runtime.gpus, stage)
        total, cores = machine.get("gpu") or num_gpus, machine.get("_cores") or 4 * num_gpus
        num_gpus = min(num_gpus, total)
        jobs = len(self.samples) if stage in ("sample", "evaluate") else 1
        abreast = max(1, min(jobs, total // num_gpus))
        return max(1, min(4 * num_gpus, cores // abreast))

    def banner(self) -> str:
        """One line: experiment, data, and the origin of the resolution."""
        return (
            f"experiment {self.config.experiment}, data {self.data} "
            f"(resolution {self.config.data.resolution} from {self.resolution_source})"
        )


def existing(key: str, file: str | None) -> list[str]:
    """The file of weights that a key names, as an input of a rule; none if it is null.

    Raises UserError if there is no such file: Snakemake would take old results for new.
    """
    if file is not None and not Path(file).is_file():
        raise UserError(f"{key}={file} is not a file: give a file of weights, or null")
    return [] if file is None else [file]


def check_classes(config: Config, names: Sequence[str] | None) -> None:
    """Raise UserError if a sampler lists classes that are not in `names`; None: there are none."""
    for sample in config.sample.samplers:
        class_numbers(sample, names)
