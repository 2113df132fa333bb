"""An experiment as the Snakefile sees it: keys, settings and files of each stage."""

import json
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property

from pipeline.config import paths
from pipeline.config.load import layered, resolve_resolution, validate
from pipeline.config.samplers import by_sampler, check_guidance, class_numbers
from pipeline.config.schema import Config, Guide
from pipeline.config.stages import settings_words, stage_keys
from pipeline.config.workloads import TOKENS, check_solver
from pipeline.images.sources.find import resolve_image_set
from pipeline.training.milestones import check_planned
from pipeline.workflow.current_pack import pack_problem
from pipeline.workflow.selection import Selection, all_recipes
from pipeline.workflow.shared import Shared, existing
from pipeline.workflow.trainings import Training, guide_config, guide_file


class Experiment(Shared):
    """One resolved experiment on images, as the Snakefile sees it."""

    rules = "pipeline/workflow/images.smk"
    maker = "downsample"

    def __init__(self, files: Mapping[str, object], command_line: Mapping[str, object]) -> None:
        """`files`: config.yaml and those of --configfile; `command_line`: --config."""
        # The configuration, and those of networks that guide
        tree = layered(files, command_line)
        config = resolve_image_set(validate(tree))
        guiding = {g: guide_config(files, command_line, config, g) for g in all_recipes(config)}
        super().__init__(config, guiding.values())
        self.guiding = {guide: str(guide_file(c, guide)) for guide, c in guiding.items()}
        # Files that all samplers share
        self.reference = str(paths.reference_file(config))
        self.selection = Selection(self.config, self.guiding) if self.config.select else None
        if self.config.evaluate.milestones:
            check_planned(self.config)
        self.milestones = f"{self.run}/milestones/curve.jsonl"
        self.scored_milestones = [self.milestones] if self.config.evaluate.milestones else []
        self.couplings = couplings(self.trainings.values())
        self.duals = self.trainings["train"].duals
        self.extractor = str(paths.extractor_file(self.config))
        self.remade["extractor"] = (self.extractor, "weights")
        self.given_extractor = existing("evaluate.weights", self.config.evaluate.weights)
        # Samplers, and the files of each set of samples.
        self.samplers = by_sampler(self.config)  # the configuration of each, by the sampler's name
        self.first_sampler = next(iter(self.samplers))
        self.sampled_weights = {k: str(paths.weights_file(c)) for k, c in self.samplers.items()}
        if not self.config.model.class_conditional:
            check_classes(self.config, None)
        self.guides = {name: self.guide(name) for name in self.samplers}
        sets = [(c, seed) for c in self.samplers.values() for seed in c.sample.seeds]
        self.solvers = [file for name in self.samplers for file in self.solver(name)]
        self.samples = [str(paths.samples_folder(c, seed) / "images.npy") for c, seed in sets]
        self.metrics = [str(paths.metrics_file(c, seed)) for c, seed in sets]
        # `average` reads no key but its own: those of another experiment must not be checked
        words = ["config={}", f"data.resolution={self.config.data.resolution}"]
        self.average_settings = shlex.join([*shlex.split(self.settings), *words])
        # IMAGENET_DIR if the rules that read images, or the pack, need it
        self.images_env = "IMAGENET_DIR" if paths.images_need_imagenet_dir(self.config) else ""
        self.pack_env = "IMAGENET_DIR" if paths.pack_needs_imagenet_dir(self.config) else ""
        self.resolution_source = resolve_resolution(tree, os.environ)[1]

    @cached_property
    def outgrown(self) -> list[str]:
        """Files to ask for: see Shared."""
        selection = self.selection
        return super().outgrown + (selection.outgrown(self.keys("select")) if selection else [])

    def sampler_keys(self, stage: str, sampler: str) -> str:
        """The keys that `stage` reads, as canonical JSON; in `sample` those of one sampler."""
        return json.dumps(stage_keys(self.samplers[sampler], stage), sort_keys=True)

    def solver_settings(self, sampler: str) -> str:
        """Places, runtime and launch of a sampler, with the file of a guide that a rule trains."""
        files = self.guides[sampler] if self.samplers[sampler].sample.guide in self.guiding else []
        words = [f"guide={file}" for file in files]
        words += [f"choice={file}" for file in self.choice(sampler)]
        return shlex.join([*shlex.split(self.settings), *words])

    def sample_settings(self, sampler: str) -> str:
        """The same with the file of a fitted solver."""
        words = [f"solver={file}" for file in self.solver(sampler)]
        return shlex.join([*shlex.split(self.solver_settings(sampler)), *words])

    def solver(self, sampler: str) -> list[str]:
        """The file of rule `solver`, if this sampler's solver is fitted."""
        config = self.samplers[sampler]
        return [str(paths.solver_file(config))] if config.sample.learned else []

    @property
    def report_settings(self) -> str:
        """Places, with the files that only some experiments have."""
        words = [f"choice={self.selection.choice}"] if self.selection else []
        words += [f"milestones={file}" for file in self.scored_milestones]
        words += [f"duals={file}" for file in self.duals]
        words += [f"solvers={json.dumps(self.solvers)}"] if self.solvers else []
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

    def num_jobs(self, stage: str) -> int:
        """Jobs of a stage that can run side by side."""
        return len(self.samples) if stage in ("sample", "evaluate") else 1

    def pack_problem(self) -> str:
        """Why results here are not of the pack that the keys name, or empty."""
        return pack_problem(self.config)

    def banner(self) -> str:
        """One line: experiment, data, and the origin of the resolution."""
        return (
            f"experiment {self.config.experiment}, data {self.data} "
            f"(resolution {self.config.data.resolution} from {self.resolution_source})"
        )


class Coupling:
    """The rule that fits the duals of trainings: its file, keys and settings."""

    def __init__(self, config: Config) -> None:
        self.duals = str(paths.duals_file(config))
        self.keys = json.dumps(stage_keys(config, "coupling"), sort_keys=True)
        self.settings = settings_words(config)


def couplings(trainings: Iterable[Training]) -> dict[str, Coupling]:
    """Rules by their names, coupling, coupling_2, ...: one for each file of duals.

    Keys of the first training count, that of the experiment, if its guide needs the same file.
    """
    configs: dict[str, Config] = {}
    for training in trainings:
        for file in training.duals:
            configs.setdefault(file, training.config)
    names = ("coupling", *(f"coupling_{k}" for k in range(2, len(configs) + 1)))
    return {name: Coupling(c) for name, c in zip(names, configs.values(), strict=False)}


def check_classes(config: Config, names: Sequence[str] | None) -> None:
    """Raise UserError if a sampler lists classes that are not in `names`; None: there are none."""
    for sample in config.sample.samplers:
        class_numbers(sample, names)
