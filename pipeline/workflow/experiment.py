"""An experiment as the Snakefile sees it: keys and settings of each stage, and hooks."""

import json
import os
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
from pipeline.config.load import layered, resolve_resolution, validate
from pipeline.config.samplers import by_sampler, check_guidance, class_numbers
from pipeline.config.schema import Config
from pipeline.config.stages import settings_words, stage_keys
from pipeline.data.pack import Record
from pipeline.images.sources.find import resolve_image_set
from pipeline.launching.launchers import launcher
from pipeline.reporting import overview
from pipeline.steps import STEPS
from pipeline.training import start_weights
from pipeline.training.batch_size import images_of_a_rank
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
        names = paths.weights_files(self.config.train).values()
        self.weights = [f"{self.run}/train/{name}" for name in names]
        if self.config.train.start is not None:
            start_weights.locate(self.config.train.start)
            start_weights.check_kept(self.config.train.start, map(Path, self.weights))
        self.extractor = str(paths.extractor_file(self.config))
        self.given_extractor = existing("evaluate.weights", self.config.evaluate.weights)
        # Samplers, and the files of each set of samples.
        self.samplers = by_sampler(self.config)  # the configuration of each, by the sampler's name
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
        config = self.identified if stage == "train" else config
        return json.dumps(stage_keys(config, stage), sort_keys=True)

    @cached_property
    def identified(self) -> Config:
        """The configuration with the hash of the file in train.start, read when it is needed."""
        return start_weights.identified(self.config)[0]

    def guide(self, sampler: str) -> list[str]:
        """The file of the guiding weights, if this sampler has one.

        Raises UserError if the network is to guide itself and cannot.
        """
        sample, config = self.samplers[sampler].sample, self.config
        check_guidance(sample, config.model.class_conditional, config.train.label_dropout)
        if sample.guide is None or sample.guidance == 1:
            return []
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
        check_start(experiment.config, [job.rule.name for job in jobs])
    except UserError as error:
        print(f"error: rule train: {error}", file=sys.stderr)
        sys.exit(2)
    check_chosen(jobs, experiment.config)
    if workflow.local_exec:
        check_devices(jobs, experiment.config)
    print(experiment.banner(), flush=True)


def check_start(config: Config, rules: Collection[str]) -> None:
    """Raise UserError if train is among the `rules` that run and cannot start from train.start."""
    if config.train.start is None or "train" not in rules:
        return
    file = paths.record_file(config)
    is_current = file.exists() and "downsample" not in rules
    num_classes = len(Record.read(file).classes) if is_current else None
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


def check_devices(jobs: Iterable[Any], config: Config) -> None:
    """Stop unless this machine has the GPUs of every job, and the batch divides over them."""
    # Launcher of the ranks
    launch, visible = config.launch, gpus.visible()
    for job in jobs:
        step = STEPS.get(job.rule.name)
        if step is None or not step.ranked:
            continue
        # GPUs and batch
        try:
            num_gpus = int(job.resources.get("gpu", 0))
            count = launcher(launch).num_ranks(num_gpus, config.runtime.device, visible)
            if job.rule.name == "train":
                images_of_a_rank(config, count)
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
    print(f"\n{Path(summary).read_text()}", flush=True)

    # Pages and tables
    target = str(paths.RESULTS / "report.html")
    if snakemake_report(workflow.config_settings, target):
        print(f"report: {target}", flush=True)
    table = overview.write(paths.RESULTS)
    print(f"all experiments ({len(table.rows)} scores): {table.page}", flush=True)


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
