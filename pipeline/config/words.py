"""Nested dictionaries, dotted keys, and the `key=value` words of a command line."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from pipeline.base.errors import UserError
from pipeline.config.reading import read_values

# Other spellings of keys: `launcher`, and those of the Large Concept Model's trainer.
ALIASES = {
    "launcher": "launch.launcher",
    "trainer.output_dir": "out",
    "trainer.experiment_name": "experiment",
    "trainer.use_submitit": "launch.launcher",
}
USE_SUBMITIT = {True: "submitit_slurm", False: "standalone"}


def merge(base: Mapping[str, object], over: Mapping[str, object]) -> dict[str, object]:
    """`over` laid over `base`, section by section; lists are replaced whole."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        if isinstance(value, Mapping) and isinstance(below, Mapping):
            value = merge(below, value)
        merged[key] = value
    return merged


def nested(dotted: str, value: Any) -> dict[str, object]:
    """{"a": {"b": value}} of "a.b"."""
    head, _, tail = dotted.partition(".")
    return {head: nested(tail, value) if tail else value}


def lookup(tree: Any, dotted: str) -> Any:
    """The value at "a.b" in nested dictionaries."""
    for part in dotted.split("."):
        tree = tree[part]
    return tree


def parse_overrides(arguments: Iterable[str]) -> dict[str, object]:
    """Nested values of `key=value`, `+key=value` or `++key=value` arguments; values are YAML.

    Keys of ALIASES are replaced by what they mean. Raises UserError if an argument has no `=`
    or its value is not YAML.
    """
    result: dict[str, object] = {}
    # Word by word
    for argument in arguments:
        key, equals, text = argument.partition("=")
        key = re.sub(r"^\+{1,2}", "", key)
        if not equals or not key:
            raise UserError(f"argument {argument!r} is not of the form key=value")
        # Values are YAML
        try:
            value = read_values(text, ALIASES.get(key, key))
        except yaml.YAMLError as error:
            raise UserError(f"the value in {argument!r} is not YAML") from error
        # Names of other trainers
        if key == "trainer.use_submitit" and isinstance(value, bool):
            value = USE_SUBMITIT[value]
        result = merge(result, nested(ALIASES.get(key, key), value))
    return result
