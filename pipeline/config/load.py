"""The configuration: values laid over each other, checked, and handed to the stages.

config.yaml holds the values (the reference experiment, and named deltas under `experiments:`),
schema.py what a value may be. The order is config.yaml < experiments.NAME < command line; an
unknown key is an error that names the nearest known one.
"""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from pipeline.base.errors import UserError
from pipeline.base.json_objects import mapping_at
from pipeline.config.messages import explain, known_keys, nearest
from pipeline.config.model_keys import without_other_families
from pipeline.config.older_form import note_older, read_older, with_later
from pipeline.config.paths import experiment_of
from pipeline.config.reading import read_values
from pipeline.config.samplers import check_names
from pipeline.config.schema import Config, Sample
from pipeline.config.selection import check_learned, check_select
from pipeline.config.words import merge, nested, parse_overrides
from pipeline.config.workloads import check_training

DEFAULT_FILE = Path(__file__).parents[2] / "config.yaml"


# --- resolving ---------------------------------------------------------------------------------


def load_yaml(path: Path) -> dict[str, object]:
    """The mapping in a YAML file; raises UserError if it cannot be read or is not a mapping."""
    # Read as YAML
    try:
        loaded = read_values(path.read_text())
    except FileNotFoundError as error:
        raise UserError(f"config file {path} does not exist") from error
    except OSError as error:
        reason = "is a folder" if path.is_dir() else f"cannot be read ({error.strerror})"
        raise UserError(f"config file {path} {reason}: give a file of YAML or JSON") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(
            f"config file {path} is not YAML: {' '.join(str(error).split())}"
        ) from error

    # A mapping of keys
    if not isinstance(loaded, dict):
        raise UserError(f"config file {path} must hold a mapping of keys")
    return loaded


def layered(base: Mapping[str, object], overrides: Mapping[str, object]) -> dict[str, object]:
    """All values of one experiment: base < experiments[experiment] < overrides.

    `overrides` may hold `set`, dotted `key=value` words as one string or a list of strings (as
    `make SET=...` passes them).
    """
    # Words of the command line
    words = set_words(overrides.get("set") or [])
    overrides = {k: v for k, v in overrides.items() if k != "set"}
    overrides = merge(overrides, parse_overrides(words))
    tree = {k: v for k, v in base.items() if k not in ("experiments", "set")}
    # The named experiments, which the command line may add to.
    deltas = merge(base, overrides).get("experiments") or {}
    if not isinstance(deltas, Mapping):
        raise UserError(f"experiments={deltas!r} is not a mapping of named experiments")
    for name, delta in deltas.items():
        if not isinstance(delta or {}, Mapping):
            raise UserError(f"experiments.{name}={delta!r} is not a mapping of keys")
    name = str(merge(tree, overrides).get("experiment"))
    tree = lay(tree, experiment_delta(name, deltas, overrides))
    tree.pop("experiments", None)

    # Older keys
    note_older(tree)
    return tree


def lay(below: Mapping[str, object], over: Mapping[str, object]) -> dict[str, object]:
    """`over` laid over `below`, both whole configurations or parts of one.

    If `over` names the family of networks and `below` does not name the same, keys that only other
    families have do not count in `below`.
    """
    model, section = below.get("model"), over.get("model")
    if isinstance(model, Mapping) and isinstance(section, Mapping):
        kind = section.get("kind", model.get("kind"))
        if kind != model.get("kind"):
            below = {**below, "model": without_other_families(model, str(kind))}
    return merge(below, over)


# A quoted value, or, as group 1, the space before the next key of a word.
GAP = re.compile(
    r"""="(?:\\.|[^"\\])*"|='(?:''|[^'])*'|(\s+)(?=[+]{0,2}[A-Za-z_][\w.]*=)""", re.DOTALL
)


def set_words(value: Any) -> list[str]:
    """The `key=value` words of a string, or of a list of strings; spaces in a value are part of it.

    A space before something like `key=` begins the next word, except within a quoted value.
    Raises UserError if it is neither: Snakemake reads a bare `a: b` on its command line as a
    mapping, and strips quotes, so only a list brings every character through.
    """
    texts = value if isinstance(value, list) else [value]
    if not all(isinstance(text, str) for text in texts):
        raise UserError(f"set={value!r} is not text: write it as a list of one text, set=['...']")
    return [word for text in texts for word in split_words(text.strip()) if word]


def split_words(text: str) -> list[str]:
    """The words of one string: what stands between two gaps."""
    gaps = [match.span() for match in GAP.finditer(text) if match[1]]
    starts = [0, *(end for _, end in gaps)]
    ends = [*(start for start, _ in gaps), len(text)]
    return [text[start:end] for start, end in zip(starts, ends, strict=True)]


def resolve(
    base: Mapping[str, object],
    overrides: Mapping[str, object],
    environment: Mapping[str, str] = os.environ,
) -> Config:
    """The validated configuration of `layered` values; raises UserError about the first problem."""
    return validate(layered(base, overrides), environment)


def experiment_delta(
    name: str,
    deltas: Mapping[str, Any],
    over: Mapping[str, object],
    children: tuple[str, ...] = (),
) -> dict[str, object]:
    """`over` laid over the keys of experiments.NAME, and these over those that it is `like`.

    Raises UserError if the name is unknown or `like` goes in a circle.
    """
    # A known name
    if name not in deltas:
        raise UserError(
            f"no experiment {name!r} in config.yaml{nearest(name, deltas)} "
            f"(known: {', '.join(sorted(deltas))}; a new one needs an entry under `experiments:`)"
        )
    # Not its own parent
    if name in children:
        raise UserError(f"experiments.{name} is `like` itself: {' -> '.join((*children, name))}")

    # Over its parents
    delta = dict(deltas[name] or {})
    parent = delta.pop("like", None)
    delta = lay(delta, over)
    return experiment_delta(str(parent), deltas, delta, (*children, name)) if parent else delta


def resolve_resolution(
    tree: Mapping[str, object], environment: Mapping[str, str]
) -> tuple[Any, str]:
    """The resolution and its origin: the configuration, else IMAGENET_RES, else 64."""
    value = mapping_at(tree, "data").get("resolution")
    if value not in ("auto", None):
        return value, "the configuration"
    if environment.get("IMAGENET_RES"):
        return environment["IMAGENET_RES"], "IMAGENET_RES"
    return 64, "the default"


def validate(tree: Mapping[str, object], environment: Mapping[str, str] = os.environ) -> Config:
    """`tree` as a Config whose sections fit each other; raises UserError about the first problem.

    The message is one sentence, here and in all functions that read a configuration.
    """
    config = parsed(tree, environment)
    check_runs(config.sample)
    check_select(config)
    check_learned(config)
    check_training(config)
    return config


def parsed(tree: Mapping[str, object], environment: Mapping[str, str] = os.environ) -> Config:
    """`tree` as a Config of which each section is valid by itself; raises UserError otherwise."""
    if isinstance(tree.get("data"), Mapping):
        tree = merge(tree, nested("data.resolution", resolve_resolution(tree, environment)[0]))
    try:
        return Config.model_validate(read_older(tree))
    except ValidationError as error:
        raise UserError(explain(error)) from error


def overlaid(config: Config, keys: Mapping[str, object]) -> Config:
    """`config` with nested `keys` laid over it; raises UserError if one of them is not valid."""
    return parsed(merge(config.model_dump(), keys))


def of_training(config: Config, keys: Mapping[str, object]) -> Config:
    """`config` with the keys that a training has read, as its config.json holds them.

    Raises UserError if they are not valid.
    """
    return parsed(lay(config.model_dump(), with_later(keys, load_yaml(DEFAULT_FILE))))


def check_runs(sample: Sample) -> None:
    """Raise UserError if a run is not a valid sampler, or two runs have the same name."""
    # Each run by itself
    for place, run in enumerate(sample.runs):
        key = f"sample.runs[{place}]"
        if "runs" in run:
            raise UserError(f"{key}: runs within a run are not known: put all into one list")
        try:
            sample.with_run(run)
        except ValidationError as error:
            raise UserError(f"{key}: {explain(error, Sample)}") from error
    check_names(sample)


def load_step(
    argv: list[str], extra: Iterable[str], environment: Mapping[str, str] = os.environ
) -> tuple[Config, dict[str, str]]:
    """Configuration and step arguments of a command line of `key=value` words.

    `extra` names the step's own words (paths, without dots). `config=FILE` is laid over config.yaml
    if FILE has named experiments, as by Snakemake's --configfile. Otherwise it holds the keys of a
    stage, as a config.json does, which are laid over config.yaml and the experiment in whose folder
    FILE lies; so are those of `config={...}`. Sections that the stage does not read need not fit.
    """
    # The step's own words, and those of the configuration.
    # torch.distributed.launch adds --local-rank; the environment says the same.
    words = parse_overrides(a for a in argv if not re.match(r"--local[-_]rank=\d+$", a))
    step_words = {k: str(words.pop(k)) for k in list(words) if k in extra and words[k] is not None}
    config_word = words.pop("config", None)
    if isinstance(config_word, dict):
        return of_stage(config_word, words, None, environment), step_words
    check_words(words, extra)
    # A whole configuration, or the keys of one stage.
    file = Path(str(config_word)) if config_word else DEFAULT_FILE
    tree = load_yaml(file)
    if "experiments" in tree or "experiments" in words:
        whole = tree if file == DEFAULT_FILE else lay(load_yaml(DEFAULT_FILE), tree)
        return resolve(whole, words, environment), step_words
    experiment = words.get("experiment") or tree.get("experiment") or experiment_of(file)
    if experiment is None and "out" not in step_words:
        raise UserError(
            f"{file} holds the keys of a stage but not the name of an experiment, and is not in "
            "the folder of one: give experiment=NAME or out=PATH"
        )
    return of_stage(tree, words, experiment, environment), step_words


def of_stage(
    keys: Mapping[str, object],
    words: Mapping[str, object],
    experiment: object,
    environment: Mapping[str, str],
) -> Config:
    """config.yaml < the experiment, if config.yaml has it < the keys of a stage < words.

    `experiment`: its name; None: not known.
    """
    # Experiment over defaults
    base = every = load_yaml(DEFAULT_FILE)
    named = {} if experiment is None else {"experiment": experiment}
    if str(experiment) in mapping_at(base, "experiments"):
        base = layered(base, named)

    # Stage keys over those
    tree = merge({k: v for k, v in base.items() if k != "experiments"}, named)
    config = parsed(lay(tree, lay(with_later(keys, every), words)), environment)
    if {*mapping_at(keys, "model")} - {"class_conditional"}:  # which `coupling` reads alone
        check_training(config)
    return config


def check_words(words: Mapping[str, object], extra: Iterable[str]) -> None:
    """Raise UserError for a top-level word that is neither a section nor one of `extra`.

    Those of `extra` that had a value are no longer among the words.
    """
    extra = list(extra)
    names = [*Config.model_fields, "experiments", "config", *extra]
    for word in words:
        if word in extra:
            raise UserError(f"{word}= is empty: give it a value or leave it out")
        if word not in names:
            raise UserError(f"unknown key {word}{nearest(word, [*names, *known_keys()])}")
