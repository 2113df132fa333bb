"""What the Snakefile asks of the configuration: keys and settings of each stage, and hooks."""

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any

from pipeline import gpus, layout
from pipeline.config import layered, resolve_resolution, settings_words, stage_keys, validate
from pipeline.errors import UserError
from pipeline.keys import Config
from pipeline.sharing import micro_batch, processes

REMEDIES = {"IMAGENET_DIR": "export IMAGENET_DIR=FOLDER, or give data.dir and data.pack_dir"}


_HELD: list[IO[str]] = []  # open files whose locks last as long as this process


class Experiment:
    """One resolved experiment, as the Snakefile sees it."""

    def __init__(self, files: Mapping[str, Any], given: Mapping[str, Any]) -> None:
        """`files`: config.yaml, --configfile and --config; `given`: --config alone."""
        tree = layered(files, given)
        self.config: Config = validate(tree)
        self.runtime = self.config.runtime
        self.settings = settings_words(self.config)
        self.data = layout.data_name(self.config)
        self.record = str(layout.record_file(self.config))
        self.reference = str(layout.reference_file(self.config))
        self.run = str(layout.run_folder(self.config))
        names = layout.weights_files(self.config.train).values()
        self.weights = [f"{self.run}/train/{name}" for name in names]
        self.sampled_weights = str(layout.weights_file(self.config))
        self.sampler = layout.sampler_name(self.config.sample)
        self.seeds = self.config.sample.seeds
        # IMAGENET_DIR where the rules that read images, or the pack, need it
        self.images_env = "IMAGENET_DIR" if layout.images_need_imagenet_dir(self.config) else ""
        self.pack_env = "IMAGENET_DIR" if layout.pack_needs_imagenet_dir(self.config) else ""
        self.resolution_source = resolve_resolution(tree, os.environ)[1]

    def keys(self, stage: str) -> str:
        """The keys that `stage` reads, as canonical JSON: the parameter that makes it run again."""
        return json.dumps(stage_keys(self.config, stage), sort_keys=True)

    def banner(self) -> str:
        """One line: experiment, data and where the resolution comes from."""
        return (
            f"experiment {self.config.experiment}, data {self.data} "
            f"(resolution {self.config.data.resolution} from {self.resolution_source})"
        )


def start(workflow: Any, experiment: Experiment) -> None:
    """Before the first job of a run: one engine a folder, and all that its jobs need is there."""
    hold_folder(Path(".snakemake") / "pipeline.lock")
    jobs = list(workflow.dag.needrun_jobs())
    check_environment(jobs)
    if workflow.local_exec:
        check_devices(jobs, experiment.config)
    print(experiment.banner(), flush=True)


def check_devices(jobs: Iterable[Any], config: Config) -> None:
    """Stop unless this machine has the GPUs of every job, and the batch divides over them."""
    launch, visible = config.launch, gpus.visible()
    for job in jobs:
        if job.rule.name not in ("train", "sample"):
            continue
        try:
            wanted = int(job.resources.get("gpu", 0))
            count = processes(wanted, launch.launcher, config.runtime.device, visible)
            if job.rule.name == "train":
                micro_batch(config, count)
        except UserError as error:
            print(f"error: rule {job.rule.name}: {error}", file=sys.stderr)
            sys.exit(2)


def hold_folder(path: Path) -> None:
    """Lock this folder for the engine's life; the kernel frees it however the engine ends.

    It takes the place of the engine's own lock, which outlives a kill and then has to be removed
    by hand. Prints one sentence and exits with status 2 where another engine holds it.
    """
    file = path.open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("error: another snakemake is at work in this folder: wait for it", file=sys.stderr)
        sys.exit(2)
    _HELD.append(file)


def check_environment(jobs: Iterable[Any], environment: Mapping[str, str] = os.environ) -> None:
    """Stop unless every variable that a job's rule declares in resources.env is set.

    A name that ends in `?` is read where it is set and not needed. Prints one sentence naming
    rules, variable and remedy, and exits with status 2.
    """
    missing: dict[str, set[str]] = {}
    for job in jobs:
        for name in str(job.resources.get("env", "")).split():
            if not name.endswith("?") and not environment.get(name):
                missing.setdefault(name, set()).add(job.rule.name)
    for name, rules in missing.items():
        who = f"rule {', '.join(sorted(rules))} needs {name}, which is not set"
        print(f"error: {who}: {REMEDIES.get(name, f'set {name}')}", file=sys.stderr)
    if missing:
        sys.exit(2)


def finish(workflow: Any, summary: str) -> None:
    """After a run that made the report's figures: the engine's own report and the result table."""
    if not any(job.rule.name == "report" for job in workflow.dag.jobs):
        return
    target = str(layout.RESULTS / "report.html")
    words = [sys.executable, "-m", "snakemake", "--nolock", "--report", target]
    settings = workflow.config_settings
    if settings.configfiles:
        words += ["--configfile", *map(str, settings.configfiles)]
    if settings.config:
        words += ["--config", *(f"{k}={json.dumps(v)}" for k, v in settings.config.items())]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode != 0:
        print(
            f"{done.stderr[-2000:]}\nerror: {target} could not be written: see above",
            file=sys.stderr,
        )
        return
    print(f"\n{Path(summary).read_text()}\nreport: {target}", flush=True)
