"""The plan of an experiment, for a person: `make plan`.

Jobs, GPUs and environment variables are read from Snakemake's dry run, so the Snakefile is their
only list; sizes and steps follow from the configuration. With --calibrate, up to 20 training steps
on made-up images tell how long the training takes on this machine.
"""

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from pipeline.base.errors import UserError, run_main
from pipeline.base.text import size
from pipeline.compute import gpus
from pipeline.concept import pack as documents
from pipeline.concept import sizes as document_sizes
from pipeline.config import paths
from pipeline.config.load import DEFAULT_FILE
from pipeline.config.schema import Config
from pipeline.config.workloads import SENTENCES
from pipeline.flow.made_up import made_up
from pipeline.launching.launchers import launcher
from pipeline.launching.leases import lease
from pipeline.training.calibration import Calibration, calibrate
from pipeline.workflow import kinds, sizes
from pipeline.workflow.doors import check_repeats, read_values
from pipeline.workflow.dry_run import Job, dry_run
from pipeline.workflow.hooks import check_starts
from pipeline.workflow.shared import Shared
from pipeline.workflow.variables import parse_variables


def variables(job: Job) -> str:
    """The job's environment variables with their values here; those not needed only if set."""
    wanted = parse_variables(job.resource("env"))
    shown = [v.name for v in wanted if v.needed or v.name in os.environ]
    return " ".join(f"{name}={os.environ.get(name, '(NOT SET)')}" for name in shown) or "-"


def job_table(jobs: list[Job]) -> str:
    """One row per job: rule, GPUs, threads, variables, and why it runs."""
    # Table of the jobs
    rows = [("job", "GPUs", "threads", "environment", "because")]
    for job in jobs:
        why = job.fields.get("reason", "").split(":")[0].split(";")[0]
        name = job.rule
        if "wildcards" in job.fields:
            name += f" ({job.fields['wildcards'].replace('sampler=', '').replace(', ', ' ')})"
        threads = job.fields.get("threads", "1")
        rows.append((name, job.resource("gpu") or "-", threads, variables(job), why))

    # Columns as wide as needed
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = [
        "  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[4]])
        for row in rows
    ]
    return "\n".join(lines)


def ranks(config: Config, most: int) -> int:
    """Processes that train on at most `most` GPUs; 1 on a CPU, whose cores all ranks share.

    Raises UserError if more GPUs are wanted than visible.
    """
    if not gpus.visible() or config.runtime.device == "cpu":
        return 1
    num_gpus = min(config.runtime.gpus.train, most)
    return launcher(config.launch).num_ranks(num_gpus, config.runtime.device, gpus.visible())


def expectation(config: Config, measured: Calibration, world: int) -> str:
    """How long the training takes by a calibration, if `world` ranks are `world` times as fast."""
    # Time of the training
    hours = config.train.images / (measured.images_per_s * world) / 3600
    use = f", MFU {measured.mfu:.0%}" if measured.mfu is not None else ""
    # Words for the device
    cpu = measured.device == "CPU"
    devices = "the CPU, whose cores all ranks share" if cpu else f"{world} GPU(s)"
    lines = {
        "calibration": f"{measured.steps} steps of {measured.batch} made-up images, one process on "
        f"{measured.device}: {measured.images_per_s:,.3g} images/s{use}",
        "training": f"{hours:,.3g} hours on {devices}{'' if cpu else ', if speed grows with them'}",
        "GPU-hours": "none" if cpu else f"{hours * world:,.3g}",
        "peak memory": f"{size(measured.peak_bytes)} of {'the process' if cpu else 'each GPU'}",
    }
    return "\n".join(f"  {name:<13} {text}" for name, text in lines.items())


def describe(experiment: Shared, jobs: list[Job]) -> str:
    """The whole plan as text."""
    # The machine
    config, devices = experiment.config, gpus.visible()
    without = f"no GPU: {gpus.cpu_cores()} CPU cores, gloo"
    machine = f"GPUs {','.join(devices)}" if devices else without

    # The folders
    of_documents = config.workload == SENTENCES
    try:
        pack = str((documents if of_documents else paths).pack_folder(config))
    except UserError as error:
        pack = f"({error})"

    # All parts together
    head = f"experiment {config.experiment}   data {paths.data_name(config)}   {machine}"
    places = f"pack    {pack}\nresults {paths.run_folder(config)}"
    table = job_table(jobs) if jobs else "nothing to do: every result is up to date"
    guides = [t.config for rule, t in experiment.trainings.items() if rule != "train"]
    facts = document_sizes.facts(config) if of_documents else sizes.facts(config, guides)
    lines = [facts, *(f"  {'guide':<13} {sizes.guide_line(guide)}" for guide in guides)]
    return "\n\n".join([f"{head}\n{places}", table, "\n".join(lines)])


def described(configfiles: list[str], overrides: list[str]) -> Shared:
    """The experiment that Snakemake would see with these --configfile and --config words.

    Raises UserError if it would refuse them, or a file that they name is absent.
    """
    return kinds.experiment(*read_values([DEFAULT_FILE, *configfiles], overrides))


@contextmanager
def leased_device(config: Config) -> Iterator[None]:
    """A GPU for this process alone, if it is to use one; before anything asks CUDA."""
    uses_gpu = bool(gpus.visible()) and config.runtime.device != "cpu"
    with lease(int(uses_gpu)) as leased:
        if uses_gpu:
            order = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
            os.environ.update(order | {"CUDA_VISIBLE_DEVICES": leased.ids[0]})
        yield


def main(argv: list[str]) -> None:
    """Entry point; arguments as snakemake takes them."""
    # Words as Snakemake takes them
    parser = argparse.ArgumentParser(prog="pipeline.plan", description=__doc__)
    parser.add_argument("--configfile", nargs="+", default=[])
    parser.add_argument("--config", nargs="+", default=[])
    parser.add_argument("--resources", nargs="+", default=[])
    parser.add_argument("--calibrate", action="store_true")
    options, _ = parser.parse_known_args(argv)

    # The plan
    check_repeats(argv)
    experiment = described(options.configfile, options.config)
    config = experiment.config
    jobs = dry_run([word for word in argv if word != "--calibrate"])
    check_starts(experiment.trainings, rules := [job.rule for job in jobs])
    if experiment.maker not in rules and (problem := experiment.pack_problem()):
        raise UserError(problem)
    print(describe(experiment, jobs), flush=True)
    if "predict" in rules and (problem := experiment.late_problem()):
        print(f"\nnote: `make report` will refuse this: {problem}", flush=True)

    # Speed of this machine
    if options.calibrate and config.workload == SENTENCES:
        raise UserError("--calibrate is for experiments on images: leave it out")
    if options.calibrate:
        resources = dict(word.split("=", 1) for word in options.resources)
        world = ranks(config, int(resources.get("gpu", config.runtime.gpus.train)))
        with leased_device(config):
            for trained in (training.config for training in experiment.trainings.values()):
                made = partial(made_up, num_classes=sizes.num_classes(trained))
                print(f"{trained.experiment}:" if len(experiment.trainings) > 1 else "", flush=True)
                print(expectation(trained, calibrate(trained, made, world), world), flush=True)


if __name__ == "__main__":
    run_main(main, own_help=True)
