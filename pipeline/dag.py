"""What the Snakefile asks of the configuration: keys and settings of each stage, and hooks."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pipeline import layout
from pipeline.config import resolve, resolve_resolution, settings_words, stage_keys
from pipeline.keys import Config

REMEDIES = {"IMAGENET_DIR": "export IMAGENET_DIR=FOLDER, or give data.dir and data.pack_dir"}


class Experiment:
    """One resolved experiment, as the Snakefile sees it."""

    def __init__(self, files: Mapping[str, Any], given: Mapping[str, Any]) -> None:
        """`files`: config.yaml, --configfile and --config; `given`: --config alone."""
        self.config: Config = resolve(files, given)
        self.runtime = self.config.runtime
        self.settings = settings_words(self.config)
        self.data = layout.data_name(self.config)
        self.record = str(layout.record_file(self.config))
        self.reference = str(layout.reference_file(self.config))
        self.run = str(layout.run_folder(self.config))
        self.sampler = layout.sampler_name(self.config.sample)
        self.seeds = self.config.sample.seeds
        self.imagenet = "IMAGENET_DIR" if layout.needs_imagenet_dir(self.config) else ""
        self.resolution_source = resolve_resolution(files, os.environ)[1]

    def keys(self, stage: str) -> str:
        """The keys that `stage` reads, as canonical JSON: the parameter that makes it run again."""
        return json.dumps(stage_keys(self.config, stage), sort_keys=True)

    def banner(self) -> str:
        """One line: experiment, data and where the resolution comes from."""
        return (
            f"experiment {self.config.experiment}, data {self.data} "
            f"(resolution {self.config.data.resolution} from {self.resolution_source})"
        )


def check_environment(jobs: Iterable[Any], environment: Mapping[str, str] = os.environ) -> None:
    """Stop unless every variable that a job's rule declares in resources.env is set.

    A name that ends in `?` is read where it is set and not needed. Prints one sentence naming
    rule, variable and remedy, and exits with status 2.
    """
    for job in jobs:
        for name in str(job.resources.get("env", "")).split():
            if not name.endswith("?") and not environment.get(name):
                remedy = REMEDIES.get(name, f"set {name}")
                print(
                    f"error: rule {job.rule.name} needs {name}, which is not set: {remedy}",
                    file=sys.stderr,
                )
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
