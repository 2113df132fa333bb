"""The plan of an experiment, for a person: `make plan`.

Jobs, GPUs and environment variables are read from Snakemake's dry run, so the Snakefile is their
only list; sizes and steps follow from the configuration. With --calibrate, a few training steps on
made-up images tell how long the training takes on this machine.
"""

import argparse
import math
import os
from functools import partial

import torch

from pipeline.base.errors import UserError, run_main
from pipeline.compute import gpus
from pipeline.config import paths
from pipeline.config.image_sets import MADE_SOURCES
from pipeline.config.load import DEFAULT_FILE
from pipeline.config.samplers import by_sampler, class_numbers, most_evaluations, sampler_name
from pipeline.config.schema import Config, Sample
from pipeline.config.train_keys import Train
from pipeline.data.pack import Record, balance_note, chosen_note
from pipeline.flow.made_up import made_up
from pipeline.images.shapes import CLASSES
from pipeline.launching.launchers import launcher
from pipeline.networks import families
from pipeline.training.calibration import Calibration, calibrate
from pipeline.training.milestones import planned
from pipeline.workflow import selection
from pipeline.workflow.current_pack import pack_problem
from pipeline.workflow.doors import check_repeats, read_values
from pipeline.workflow.dry_run import Job, dry_run
from pipeline.workflow.experiment import Experiment
from pipeline.workflow.hooks import check_starts
from pipeline.workflow.variables import parse_variables

IMAGENET_CLASSES = 1000  # for the size of the embedding, as long as there is no record


def size(count: float) -> str:
    """Bytes as a person reads them."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


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


def num_images(config: Config) -> int | None:
    """Images of the pack: from its record, else as the configuration expects them."""
    path = paths.record_file(config)
    if path.exists():
        return Record.read(path).num_images
    if config.data.source in MADE_SOURCES:
        return MADE_SOURCES[config.data.source] * len(CLASSES)
    return config.data.expected_images


def num_classes(config: Config) -> int:
    """Classes of the pack: from its record, else as the configuration expects them."""
    path = paths.record_file(config)
    if path.exists():
        return len(Record.read(path).classes)
    if config.data.source in MADE_SOURCES:
        return len(CLASSES)
    return config.data.expected_classes or IMAGENET_CLASSES


def weight_bytes(config: Config) -> int:
    """Size of the network's weights."""
    with torch.device("meta"):
        net = families.build(config.model, num_classes(config))
    return 4 * sum(p.numel() for p in net.parameters())


def guide_line(config: Config) -> str:
    """The training of a network that guides, in a line."""
    steps, weights = math.ceil(config.train.images / config.train.batch), weight_bytes(config)
    stored = config.train.snapshot_bytes * weights // 4
    averages = f" and stored averages of {size(stored)}" if stored else ""
    return (
        f"{config.experiment}: {weights / 4e6:.1f} M parameters, {steps:,} steps of "
        f"{config.train.batch:,} = {config.train.images:,} images, checkpoints of "
        f"{size(config.train.num_copies * weights)}{averages} in {paths.run_folder(config)}"
    )


def facts(config: Config) -> str:
    """Training length, network size and sizes on disk, a line each."""
    # Size of the network
    num, res, train = num_images(config), config.data.resolution, config.train
    weights = weight_bytes(config)

    # Size of the files
    pack = num * (res * res * 3 + 8) if num else 0
    samplers = config.sample.samplers
    samples = sum(s.num * len(s.seeds) for s in samplers) * (res * res * 3 + 8)
    averages, saved = len(paths.weights_files(train)), train.num_copies * weights
    stored = train.snapshot_bytes * weights // 4
    plain = [c for c in by_sampler(config).values() if not c.sample.selected]
    made = {str(paths.weights_file(c)) for c in plain if c.sample.ema_width}
    made |= set(selection.averages(config))
    # Length and checkpoints
    every, steps = config.runtime.milestone_images, math.ceil(train.images / train.batch)
    num_kept = config.runtime.keep_checkpoints + (train.images // every if every else 0)
    total = pack + num_kept * saved + stored + (averages + len(made)) * weights + samples
    epochs = f"{train.images / num:,.1f} epochs of {num:,}" if num else "epochs: not known yet"

    # Line by line
    lines = {
        "network": f"{weights / 4e6:.1f} M parameters",
        "training": f"{steps:,} steps of {train.batch:,} = {train.images:,} images, {epochs}",
        **({} if train.start is None else {"start": train.start}),
        "pack": size(pack) if num else "not known yet",
        "checkpoints": f"{size(saved)} each, {num_kept:,} kept",
        **({"snapshots": snapshot_line(train, stored)} if stored else {}),
        "weights": f"{size(weights)} for each of {averages + len(made)} average(s)",
        "sample files": size(samples),
        "disk": f"{size(total)} in all{'' if num else ', and the pack'}",
    }

    # Samplers one by one
    more_lines = [("sampler", sampler_line(sampler)) for sampler in samplers]
    more_lines += [("select", line) for line in [selection.cost(config)] if line]
    more_lines += [("milestones", line) for line in [milestones_line(config)] if line]
    more_lines += [("note", note) for note in class_notes(config)]
    return "\n".join(f"  {name:<13} {text}" for name, text in [*lines.items(), *more_lines])


def snapshot_line(train: Train, num_bytes: int) -> str:
    """The averages that the training stores, `num_bytes` together, in a line."""
    count = len(train.stored_images(train.last_images))
    num_files, precision = count * len(train.ema_widths), train.ema_snapshot_precision
    return f"{size(num_bytes)}: {len(train.ema_widths)} averages at {count:,} times, " + (
        f"{size(num_bytes / num_files)} each in {precision}"
    )


def milestones_line(config: Config) -> str:
    """What the scores over the training cost, in a line; empty without evaluate.milestones."""
    if not config.evaluate.milestones:
        return ""
    count = len(planned(config.train, config.runtime.milestone_images))
    num_images = count * config.evaluate.milestone_num
    text = f"{count:,} times {config.evaluate.milestone_num:,} images = {num_images:,} images"
    each = most_evaluations(config.sample.samplers[0])
    if each is None:
        return f"{text}; their evaluations of networks depend on the tolerance"
    return f"{text}, {num_images * each:,} evaluations of networks"


def class_notes(config: Config) -> list[str]:
    """Sentences about samplers whose classes are not shared out as those of the pack.

    Raises UserError if a sampler lists a class that the pack does not have.
    """
    # Only with a record
    path = paths.record_file(config)
    if not (config.model.class_conditional and path.exists()):
        return []
    record = Record.read(path)

    # Chosen and balanced classes
    notes = []
    for sampler in config.sample.samplers:
        numbers = class_numbers(sampler, record.classes)
        if numbers is not None:
            notes.append(chosen_note(len(numbers), len(record.classes)))
        elif sampler.classes == "balanced" and record.per_class:  # None in old records
            notes.append(balance_note(record.per_class.values()))
    return list(dict.fromkeys(filter(None, notes)))


def sampler_line(sample: Sample) -> str:
    """One sampler in a line: its name, images and seeds."""
    seeds = ", ".join(map(str, sample.seeds))
    word = "seed" if len(sample.seeds) == 1 else "each of the seeds"
    return f"{sampler_name(sample)}: {sample.num:,} images with {word} {seeds}"


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


def describe(experiment: Experiment, jobs: list[Job]) -> str:
    """The whole plan as text."""
    # The machine
    config, devices = experiment.config, gpus.visible()
    without = f"no GPU: {gpus.cpu_cores()} CPU cores, gloo"
    machine = f"GPUs {','.join(devices)}" if devices else without

    # The folders
    try:
        pack = str(paths.pack_folder(config))
    except UserError as error:
        pack = f"({error})"

    # All parts together
    head = f"experiment {config.experiment}   data {paths.data_name(config)}   {machine}"
    places = f"pack    {pack}\nresults {paths.run_folder(config)}"
    table = job_table(jobs) if jobs else "nothing to do: every result is up to date"
    guides = [guide_line(t.config) for rule, t in experiment.trainings.items() if rule != "train"]
    lines = [facts(config), *(f"  {'guide':<13} {line}" for line in guides)]
    return "\n\n".join([f"{head}\n{places}", table, "\n".join(lines)])


def described(configfiles: list[str], overrides: list[str]) -> Experiment:
    """The experiment that Snakemake would see with these --configfile and --config words.

    Raises UserError if it would refuse them, or a file that they name is absent.
    """
    return Experiment(*read_values([DEFAULT_FILE, *configfiles], overrides))


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
    if "downsample" not in rules and (problem := pack_problem(config)):
        raise UserError(problem)
    print(describe(experiment, jobs), flush=True)

    # Speed of this machine
    if options.calibrate:
        resources = dict(word.split("=", 1) for word in options.resources)
        world = ranks(config, int(resources.get("gpu", config.runtime.gpus.train)))
        for trained in (training.config for training in experiment.trainings.values()):
            made = partial(made_up, num_classes=num_classes(trained))
            print(f"{trained.experiment}:" if len(experiment.trainings) > 1 else "", flush=True)
            print(expectation(trained, calibrate(trained, made, world), world), flush=True)


if __name__ == "__main__":
    run_main(main)
