"""Training length, network size and sizes on disk of an experiment on images, for its plan."""

import math
from collections.abc import Sequence

from pipeline.base.text import size
from pipeline.config import paths
from pipeline.config.image_sets import MADE_SOURCES
from pipeline.config.samplers import by_sampler, class_numbers, most_evaluations, sampler_name
from pipeline.config.schema import Config, Sample
from pipeline.config.train_keys import Train
from pipeline.data.pack import Record, balance_note, chosen_note
from pipeline.images.shapes import CLASSES
from pipeline.networks import families
from pipeline.scoring.kept_features import kept_bytes
from pipeline.scoring.kinds import KINDS
from pipeline.training.milestones import planned
from pipeline.workflow import selection

IMAGENET_CLASSES = 1000  # for the size of the embedding, as long as there is no record


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
    return 4 * families.num_parameters(config.model, num_classes(config))


def num_checkpoints(config: Config) -> int:
    """Checkpoints that a training leaves, if it is long enough."""
    runtime = config.runtime
    return runtime.keep_checkpoints + config.train.num_milestones(runtime.milestone_images)


def guide_bytes(config: Config) -> int:
    """Size of the files of a network that guides: checkpoints, stored averages and weights."""
    train, weights = config.train, weight_bytes(config)
    averages = len(paths.weights_files(train)) + (config.sample.ema_width is not None)
    saved = num_checkpoints(config) * train.num_copies * weights
    return saved + train.snapshot_bytes * weights // 4 + averages * weights


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


def facts(config: Config, guides: Sequence[Config] = ()) -> str:
    """Training length, network size and sizes on disk, a line each.

    `guides`: the trainings of networks that guide, whose files are on the disk, too.
    """
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
    steps, num_kept = math.ceil(train.images / train.batch), num_checkpoints(config)
    features = kept_bytes(num, KINDS[config.evaluate.extractor].width) if num else 0
    total = pack + features + num_kept * saved + stored + (averages + len(made)) * weights + samples
    total += sum(map(guide_bytes, guides))
    epochs = f"{train.images / num:,.1f} epochs of {num:,}" if num else "epochs: not known yet"

    # Line by line
    lines = {
        "network": f"{weights / 4e6:.1f} M parameters",
        "training": f"{steps:,} steps of {train.batch:,} = {train.images:,} images, {epochs}",
        **({} if train.start is None else {"start": train.start}),
        "pack": size(pack) if num else "not known yet",
        "reference": size(features) if num else "not known yet",
        "checkpoints": f"{size(saved)} each, {num_kept:,} kept",
        **({"snapshots": snapshot_line(train, stored)} if stored else {}),
        "weights": f"{size(weights)} for each of {averages + len(made)} average(s)",
        "sample files": size(samples),
        "disk": f"{size(total)} in all{'' if num else ', the pack and its reference'}",
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
    """The cost of the scores over the training, in a line; empty without evaluate.milestones."""
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
        elif sampler.classes in ("balanced", "random") and record.per_class:  # None in old records
            notes.append(balance_note(record.per_class.values()))
    return list(dict.fromkeys(filter(None, notes)))


def sampler_line(sample: Sample) -> str:
    """One sampler in a line: its name, images and seeds."""
    seeds = ", ".join(map(str, sample.seeds))
    word = "seed" if len(sample.seeds) == 1 else "each of the seeds"
    return f"{sampler_name(sample)}: {sample.num:,} images with {word} {seeds}"
