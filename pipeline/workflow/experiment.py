"""An experiment as the Snakefile sees it: keys and settings of each stage, and hooks."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import IO, Any

from pipeline.base.errors import UserError
from pipeline.base.locks import take_lock
from pipeline.compute import gpus
from pipeline.config import paths
from pipeline.config.image_sets import NO_CLASS, check_classless
from pipeline.config.load import layered, resolve_resolution, validate
from pipeline.config.samplers import by_sampler, check_guidance, class_numbers
from pipeline.config.schema import Config, Guide
from pipeline.config.stages import settings_words, stage_keys
from pipeline.data.pack import Record
from pipeline.images.sources.changes import location_at_hand
from pipeline.images.sources.find import resolve_image_set
from pipeline.images.sources.opening import has_classes
from pipeline.launching import console
from pipeline.launching.launchers import launcher
from pipeline.reporting import front_pages, overview
from pipeline.steps import STEPS
from pipeline.training import start_weights
from pipeline.training.batch_size import images_of_a_rank
from pipeline.training.milestones import check_planned
from pipeline.workflow.selection import Selection, all_recipes
from pipeline.workflow.trainings import Training, by_rule, guide_config, guide_file
from pipeline.workflow.variables import parse_variables

REMEDIES = {"IMAGENET_DIR": "export IMAGENET_DIR=FOLDER, or give data.dir and data.pack_dir"}


_HELD: list[IO[str]] = []  # open files whose locks last as long as this process


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

        Raises UserError if the network is to guide itself and cannot.
        """
        sample, config = self.samplers[sampler].sample, self.config
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


def start(workflow: Any, experiment: Experiment) -> None:
    """Checks before the first job: no other Snakemake is here, and all that the jobs need is."""
    hold_folder(Path(".snakemake") / "pipeline.lock")
    jobs = list(workflow.dag.needrun_jobs())
    check_environment(jobs)
    try:
        check_starts(experiment.trainings, [job.rule.name for job in jobs])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    check_chosen(jobs, experiment.config)
    if workflow.local_exec:
        check_devices(jobs, experiment)
    print(experiment.banner(), flush=True)


def check_starts(trainings: Mapping[str, Training], rules: Collection[str]) -> None:
    """Raise UserError if a training is among the `rules` that run and cannot work."""
    for rule in (name for name in trainings if name in rules):
        try:
            check_start(trainings[rule].config, "downsample" in rules)
        except UserError as error:
            raise UserError(f"rule {rule}: {error}") from error


def check_start(config: Config, packs: bool) -> None:
    """Raise UserError if a training cannot work, before or after a pack is made (`packs`).

    That is, if it is to learn classes of images that have none, or cannot start from train.start.
    """
    # The pack that is there
    file = paths.record_file(config)
    is_current = file.exists() and not packs
    classes = Record.read(file).classes if is_current else None
    conditional = config.model.class_conditional
    if classes:
        check_classless(f"the pack of {file}", classes, conditional)

    # The images that it will be made of
    location = location_at_hand(config, config.data.layout) if conditional and not classes else None
    if location and not has_classes(location):
        check_classless(str(location.paths[0]), [NO_CLASS], conditional)

    # The first weights
    if config.train.start is None:
        return
    num_classes = len(classes) if classes else None
    start_weights.check_origin(start_weights.locate(config.train.start), config, num_classes)


def check_chosen(jobs: Iterable[Any], config: Config) -> None:
    """Stop unless the pack has the classes that are to be sampled, if it is there already."""
    record, rules = paths.record_file(config), {job.rule.name for job in jobs}
    if "downsample" in rules or not rules & {"train", "sample"} or not record.exists():
        return
    try:
        if config.model.class_conditional:
            check_classes(config, Record.read(record).classes)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def check_classes(config: Config, names: Sequence[str] | None) -> None:
    """Raise UserError if a sampler lists classes that are not in `names`; None: there are none."""
    for sample in config.sample.samplers:
        class_numbers(sample, names)


def check_devices(jobs: Iterable[Any], experiment: Experiment) -> None:
    """Stop unless this machine has the GPUs of every job, and the batch divides over them."""
    # Launcher of the ranks
    config, visible = experiment.config, gpus.visible()
    for job in jobs:
        training = experiment.trainings.get(job.rule.name)
        step = STEPS.get("train" if training else job.rule.name)
        if step is None or not step.ranked:
            continue
        # GPUs and batch
        try:
            num_gpus = int(job.resources.get("gpu", 0))
            count = launcher(config.launch).num_ranks(num_gpus, config.runtime.device, visible)
            if training:
                images_of_a_rank(training.config, count)
        except UserError as error:
            print(f"error: rule {job.rule.name}: {error}", file=sys.stderr)
            sys.exit(2)


def hold_folder(path: Path) -> None:
    """Lock this folder until Snakemake ends; the kernel frees it, however that happens.

    This replaces Snakemake's own lock, which outlives a kill and then has to be removed by hand.
    Prints one sentence and exits with status 2 if another Snakemake holds it.
    """
    # Only one at a time
    file = path.open("a")
    if not take_lock(file):
        print("error: another snakemake is at work in this folder: wait for it", file=sys.stderr)
        sys.exit(2)

    # Named for others
    file.truncate(0)
    file.write(json.dumps({"pid": os.getpid()}))  # for pipeline.stop
    file.flush()
    _HELD.append(file)


def check_environment(jobs: Iterable[Any], environment: Mapping[str, str] = os.environ) -> None:
    """Stop unless every variable that a job needs by its rule's resources.env is set.

    Prints one sentence naming rules, variable and remedy, and exits with status 2.
    """
    # Variables by job
    missing: dict[str, set[str]] = {}
    for job in jobs:
        for variable in parse_variables(str(job.resources.get("env", ""))):
            if variable.needed and not environment.get(variable.name):
                missing.setdefault(variable.name, set()).add(job.rule.name)

    # One line each
    for name, rules in missing.items():
        need = f"rule {', '.join(sorted(rules))} needs {name}, which is not set"
        print(f"error: {need}: {REMEDIES.get(name, f'set {name}')}", file=sys.stderr)
    if missing:
        sys.exit(2)


def finish(workflow: Any, summary: str) -> None:
    """After a run that made the report's figures: Snakemake's report and the tables."""
    # Only after a report
    if not any(job.rule.name == "report" for job in workflow.dag.jobs):
        return
    if not console.is_brief():
        print(f"\n{Path(summary).read_text()}", flush=True)

    # Pages and tables
    target = str(paths.RESULTS / "report.html")
    if snakemake_report(workflow.config_settings, target):
        print(f"Snakemake's report: {target}", flush=True)
    table = overview.write(paths.RESULTS)
    print(f"report: {Path(summary).parent / front_pages.INDEX}", flush=True)
    cards = front_pages.write_cards(paths.RESULTS)
    print(f"all experiments ({len(table.rows)} scores): {cards}", flush=True)


def snakemake_report(settings: Any, target: str) -> bool:
    """Let Snakemake write its report of the run with these settings; returns whether it did."""
    # The same configuration
    words = [sys.executable, "-m", "snakemake", "--nolock", "--report", target]
    if settings.configfiles:
        words += ["--configfile", *map(str, settings.configfiles)]
    if settings.config_args:
        words += ["--config", *settings.config_args]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode != 0:
        print(
            f"{done.stderr[-2000:]}\nerror: {target} could not be written: see above",
            file=sys.stderr,
        )
    return done.returncode == 0
