"""Hooks of the Snakefile: checks before the first job, and the pages after the last one."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import IO, Any

from pipeline.base.errors import UserError
from pipeline.base.locks import no_locks, take_lock
from pipeline.compute import gpus
from pipeline.config import paths
from pipeline.config.image_sets import NO_CLASS, check_classless
from pipeline.config.schema import Config
from pipeline.config.workloads import SENTENCES
from pipeline.data.pack import Record
from pipeline.images.sources.changes import location_at_hand
from pipeline.images.sources.opening import has_classes
from pipeline.launching import console
from pipeline.launching.launchers import launcher
from pipeline.reporting import front_pages, overview
from pipeline.steps import STEPS
from pipeline.training import start_weights
from pipeline.training.batch_size import images_of_a_rank
from pipeline.workflow.doors import check_writable
from pipeline.workflow.experiment import Experiment, check_classes
from pipeline.workflow.shared import Shared
from pipeline.workflow.trainings import Training
from pipeline.workflow.variables import parse_variables

REMEDIES = {"IMAGENET_DIR": "export IMAGENET_DIR=FOLDER, or give data.dir and data.pack_dir"}

_HELD: list[IO[str]] = []  # open files whose locks last as long as this process


def start(workflow: Any, experiment: Shared) -> None:
    """Checks before the first job: no other Snakemake is here, and all that the jobs need is."""
    hold_folder(Path(".snakemake") / "pipeline.lock")
    jobs = list(workflow.dag.needrun_jobs())
    check_environment(jobs)
    try:
        check_remade(workflow, experiment, {job.rule.name for job in jobs})
        check_writable(paths.RESULTS)
        check_starts(experiment.trainings, [job.rule.name for job in jobs])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    if isinstance(experiment, Experiment):
        check_chosen(jobs, experiment.config)
    if workflow.local_exec:
        check_devices(jobs, experiment)
    print(experiment.banner(), flush=True)


def check_remade(workflow: Any, experiment: Shared, rules: Collection[str]) -> None:
    """Raise UserError if all results would be made again for a rule whose file may stay as it is.

    Snakemake runs what follows a job in the same run, even if its file is equal afterwards: a pack
    whose number of images is checked by another key, or weights of an extractor in another place.
    """
    for rule, (file, target) in experiment.remade.items():
        settings = workflow.dag_settings
        is_forced = settings.forceall or rule in settings.forcerun
        is_alone = {*rules} <= {rule, "data"}  # the latter makes nothing by itself
        if rule not in rules or is_forced or is_alone or not Path(file).exists():
            continue
        raise UserError(
            f"rule {rule} must run again, since its keys, files or code have changed, and all "
            f"results would be made again after it: first run `make {target}` with the same keys; "
            f"if {file} is then as before, nothing else runs again"
        )


def check_starts(trainings: Mapping[str, Training], rules: Collection[str]) -> None:
    """Raise UserError if a training is among the `rules` that run and cannot work."""
    for rule in (name for name in trainings if name in rules):
        try:
            config = trainings[rule].config
            check_start(config, classes_of(config, "downsample" in rules))
        except UserError as error:
            raise UserError(f"rule {rule}: {error}") from error


def classes_of(config: Config, packs: bool) -> list[str] | None:
    """The classes of the pack of images that is there; None: not known, or it has none.

    `packs`: one is about to be made. Raises UserError if a training is to learn classes of images
    that have none.
    """
    if config.workload == SENTENCES:
        return None

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
    return classes


def check_start(config: Config, classes: list[str] | None) -> None:
    """Raise UserError if a training on these classes cannot start from train.start."""
    if config.train.start is not None:
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


def check_devices(jobs: Iterable[Any], experiment: Shared) -> None:
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
    Prints one sentence and exits with status 2 if another Snakemake holds it or it cannot be.
    """
    # Only one at a time
    try:
        file = path.open("a")
        taken = take_lock(file)
    except OSError as error:
        print(f"error: {no_locks(error, path)}", file=sys.stderr)
        sys.exit(2)
    if not taken:
        print("error: another snakemake is at work in this folder: wait for it", file=sys.stderr)
        sys.exit(2)

    # Named for others
    file.truncate(0)
    whose = {"pid": os.getpid(), "host": socket.gethostname()}
    file.write(json.dumps(whose))  # for pipeline.stop
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
        noun, verb = ("rule", "needs") if len(rules) == 1 else ("rules", "need")
        need = f"{noun} {', '.join(sorted(rules))} {verb} {name}, which is not set"
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
