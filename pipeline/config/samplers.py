"""The samplers of an experiment: their names, and that no two have the same."""

import re
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

from pydantic import ValidationError

from pipeline.base.errors import UserError
from pipeline.base.files import sha256_json
from pipeline.base.json_objects import mapping_at
from pipeline.config.messages import nearest
from pipeline.config.older_form import LATER
from pipeline.config.schema import Config, Guide, Sample

# Network evaluations of a step, by the solvers that follow a grid; a multistep one has one more
# whenever it starts
EVALUATIONS = {
    "euler": 1,
    "midpoint": 2,
    "heun": 2,
    "rk4": 4,
    "ab2": 1,
    "ab3": 1,
    "jump": 1,
    "learned": 1,
}
SHORT = 24  # characters of class numbers that a sampler's name shows
BF16_TOLERANCE = 1e-4  # the least at which dopri5 in bf16 needs about what it needs in fp32 at 1e-5


def sampler_name(sample: Sample) -> str:
    """Name of the sampler's folder: heun-18-edm, dopri5-1e-05-g1.2, heun-18-ema500000, ...

    Each key that differs from the plainest sampler adds a part; `num` and `precision` add none.
    """
    return "-".join([sample.solver, *_length(sample), *_kind(sample)])


def rounding_note(sample: Sample) -> str:
    """A sentence about a tolerance that bf16 cannot keep; empty if it can.

    bf16 rounds to 2^-9: dopri5 takes that for its own error and shortens its steps, to three times
    the evaluations at 1e-5 for images that are no better (results/benchmarks/sampling.json).
    """
    # Only if rounding matters
    tolerance = min(sample.rtol, sample.atol)
    if not sample.adaptive or sample.precision != "bf16" or tolerance >= BF16_TOLERANCE:
        return ""
    return (
        f"{sample.solver} takes the rounding of bf16 for error at a tolerance of {tolerance:g} and "
        "needs several times the evaluations: sample.precision=tf32 does not, nor do sample.rtol "
        f"and sample.atol of {BF16_TOLERANCE:g} or more"
    )


def edges_note(sample: Sample) -> str:
    """A sentence about a fixed grid's steps across the edges of guidance; empty without any."""
    if sample.adaptive or sample.jumps or not sample.guidance_edges:
        return ""
    low, high = sample.guidance_interval
    return (
        f"{sample.solver} guides each evaluation whose time lies in sample.guidance_interval="
        f"[{low:g},{high:g}], and its steps do not end at these times, as those of dopri5 do"
    )


def unguided_note(sample: Sample) -> str:
    """A sentence about keys of guidance that are not read without any; empty if all are."""
    given = {"guide": sample.guide is not None, "guidance_interval": sample.guidance_interval}
    unread = [key for key, value in given.items() if value not in (False, (0, 1))]
    if sample.guidance != 1 or not unread:
        return ""
    names = " and ".join(f"sample.{key}" for key in unread)
    return f"sample.guidance=1 guides nothing, so that {names} changes no image"


def notes(sample: Sample) -> list[str]:
    """Sentences about what a sampler's keys do beyond what they say."""
    every = (rounding_note(sample), edges_note(sample), unguided_note(sample))
    return [note for note in every if note]


def most_evaluations(sample: Sample) -> int | None:
    """Evaluations of networks for an image, if guided at all times; None: an adaptive solver's."""
    if sample.adaptive:
        return None
    steps = len(sample.grid) - 1 if isinstance(sample.grid, tuple) else sample.steps
    count = EVALUATIONS[sample.solver] * steps
    if sample.along_sigma:  # the last step is Euler's
        count -= EVALUATIONS[sample.solver] - 1
    if sample.multistep:  # one more at the start, and after each edge of guidance
        count += min(steps - sample.along_sigma, 1 + len(sample.guidance_edges))
    return count * (1 if sample.guidance == 1 else 2)


def by_sampler(config: Config) -> dict[str, Config]:
    """One configuration per sampler, without `runs`, by the sampler's name."""
    samplers = config.sample.samplers
    return {sampler_name(s): config.model_copy(update={"sample": s}) for s in samplers}


def one_sampler(config: Config, name: str | None) -> Config:
    """The configuration of one sampler of sample.runs: `name`, or the only one.

    Raises UserError if there are several and none of them is named.
    """
    # The only one
    every = by_sampler(config)
    if name is None and len(every) == 1:
        return next(iter(every.values()))
    # One by name
    if name not in every:
        raise UserError(
            f"{'several samplers' if name is None else f'no sampler {name}'} in this experiment: "
            f"choose one of them by sampler=NAME, {' or '.join(every)}"
        )
    return every[name]


def family(about: Mapping[str, object]) -> str:
    """The sampler's name without its steps or tolerances: those that a curve over NFE joins.

    `about`: a sample.json; one without our keys (another program's) is a separate family.
    """
    try:
        keys = {"seeds": [0], "runs": []} | LATER["sample"]
        keys |= mapping_at(mapping_at(about, "config"), "sample")
        sample = Sample.model_validate(keys)
    except (KeyError, TypeError, ValidationError):
        return str(about["sampler"])
    return "-".join([sample.solver, *_kind(sample)])


def _length(sample: Sample) -> list[str]:
    """Tolerances of an adaptive solver, one if they are equal; steps of the others."""
    if sample.adaptive:
        return [f"{tolerance:g}" for tolerance in dict.fromkeys((sample.rtol, sample.atol))]
    return [str(len(sample.grid) - 1 if isinstance(sample.grid, tuple) else sample.steps)]


def _kind(sample: Sample) -> list[str]:
    """A part for each other key that differs from the plainest sampler."""
    # The grid
    parts = [] if sample.adaptive else _grid(sample)
    parts += _jumps(sample)
    # What is chosen after the training has no values yet
    chosen = sample.selected
    # Guidance
    if chosen and sample.guide is not None:
        parts.append(f"by-{_guide(sample.guide)}")
    elif sample.guidance != 1 and not chosen:
        parts.append(f"g{sample.guidance:g}")
        if sample.guidance_interval != (0, 1):
            parts.append("from{:g}to{:g}".format(*sample.guidance_interval))
        if sample.guide is not None:
            parts.append(f"by-{_guide(sample.guide)}")
    # Classes and average
    if sample.classes != "balanced":
        parts.append(_classes(sample))
    for average in (sample.ema_halflife_images, sample.ema_width):
        if average is not None and not chosen:
            parts.append(f"ema{average}")
    if sample.ema_images is not None:
        parts.append(f"at{sample.ema_images}")
    return [*parts, "select"] if chosen else parts


def _guide(guide: Guide | str) -> str:
    """The name of a guide's file, or of its experiment and length, and a hash of all it says."""
    if isinstance(guide, str):
        return f"{re.sub(r'[^A-Za-z0-9_.]', '_', Path(guide).stem)}-{sha256_json(guide)[:6]}"
    value = guide.model_dump(exclude_none=True)
    return f"{guide_name(guide).replace('-', '_')}-{sha256_json(value)[:6]}"


def guide_name(guide: Guide) -> str:
    """The experiment that guides, with its length if it has one of its own: edm2_xs-134217728."""
    return guide.experiment if guide.images is None else f"{guide.experiment}-{guide.images}"


def _grid(sample: Sample) -> list[str]:
    """The grid of times as a part of the name; none for the uniform one."""
    if isinstance(sample.grid, tuple):
        return [f"grid{sha256_json(sample.grid)[:6]}"]
    return [] if sample.grid == "uniform" else [sample.grid]


def _jumps(sample: Sample) -> list[str]:
    """A part of the name for each key of jumps that differs from the plainest sampler."""
    free = sample.divergence_free
    parts = [] if free == "none" else [free if isinstance(free, str) else f"c{free:g}"]
    parts += [] if sample.temperature == 1 else [f"T{sample.temperature:g}"]
    return parts + ([] if sample.categorical == "float32" else [sample.categorical])


def _classes(sample: Sample) -> str:
    """The choice of classes as a part of the name: classes1_5, or a hash of names or many."""
    if isinstance(sample.classes, str):
        return sample.classes
    text = "_".join(map(str, sample.classes))
    is_short = len(text) <= SHORT and all(isinstance(entry, int) for entry in sample.classes)
    return f"classes{text}" if is_short else f"classes-{sha256_json(sample.classes)[:6]}"


def class_numbers(sample: Sample, names: Sequence[str] | None) -> tuple[int, ...] | None:
    """The numbers of the classes that sample.classes lists; None if it is not a list.

    `names`: of the network's classes in label order; None if it knows none. Raises UserError if it
    knows none, one in the list is not among them, or two are the same.
    """
    # A list, and classes
    if isinstance(sample.classes, str):
        return None
    if names is None:
        raise UserError(
            f"sample.classes={_listed(sample.classes)} is not possible, since the network knows no "
            "classes: give sample.classes=balanced, or weights of a network that knows classes"
        )

    # Each of them once
    numbers = tuple(_class_number(entry, names) for entry in sample.classes)
    for place, number in enumerate(numbers):
        if number in numbers[:place]:
            raise UserError(
                f"sample.classes={_listed(sample.classes)} lists class {number}, "
                f"{names[number]}, by its number and by its name: leave one out"
            )
    return numbers


def _class_number(entry: int | str, names: Sequence[str]) -> int:
    """The number of one class; raises UserError if there is no such number or name."""
    if isinstance(entry, str) and entry in names:
        return names.index(entry)
    if isinstance(entry, int) and 0 <= entry < len(names):
        return entry
    kind = f"number {entry}" if isinstance(entry, int) else f"name {entry!r}"
    raise UserError(
        f"sample.classes: no class has the {kind}; the classes are 0 to {len(names) - 1}, "
        f"{names[0]} to {names[-1]}{nearest(str(entry), names) if isinstance(entry, str) else ''}"
    )


def _listed(classes: Sequence[int | str]) -> str:
    """A list of classes as it is typed, the first ones if it is long."""
    return f"[{', '.join(map(str, classes[:5]))}{', …' if len(classes) > 5 else ''}]"


def check_guidance(sample: Sample, class_conditional: bool, label_dropout: float | None) -> None:
    """Raise UserError if a network is to guide itself and has no velocity without a class.

    It knows no classes, or was trained with every image's class: `label_dropout` is that of its
    training, None if that is not known.
    """
    # Nothing to guide
    if sample.guidance == 1 or sample.guide is not None:
        return

    # Without a class
    why = "" if class_conditional else "the network knows no classes"
    if class_conditional and label_dropout == 0:
        why = "the network was trained with train.label_dropout=0, always with the class"
    if why:
        raise UserError(
            f"sample.guidance={sample.guidance:g} is not possible, since {why}: give "
            "sample.guidance=1, or weights that guide in sample.guide"
        )


def check_names(sample: Sample) -> None:
    """Raise UserError if two samplers have the same name: they would write the same files."""
    named = [(place, run, sampler_name(run)) for place, run in enumerate(sample.samplers)]
    for (a, first, name), (b, second, again) in combinations(named, 2):
        if name == again:
            raise UserError(
                f"sample.runs[{a}] and sample.runs[{b}] have one name, {name}, and so one folder: "
                + _remedy(first, second)
            )


def _remedy(first: Sample, second: Sample) -> str:
    """The remedy for two samplers of the same name."""
    # By their differences
    keys = [k for k in Sample.model_fields if getattr(first, k) != getattr(second, k)]
    if not keys:
        return "they are equal, so leave one out"
    if keys == ["seeds"]:
        return "they differ in their seeds alone, so put all seeds into one of them"
    return (
        f"no name shows {', '.join(f'sample.{key}' for key in keys)}, in which they differ, "
        "so make a separate experiment for one of them (under `experiments:` in config.yaml)"
    )
