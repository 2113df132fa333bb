"""The words of a command line of Snakemake: nothing of them is dropped, and values have types.

Snakemake itself takes the last of two `--config`, reads nested values as text, and looks for a rule
that makes a file of the name `train.lr=2e-4`.
"""

import os
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from snakemake_interface_executor_plugins.settings import ExecMode

from pipeline.base.errors import UserError
from pipeline.config.load import lay, layered, load_yaml, resolve_resolution
from pipeline.config.messages import known_keys
from pipeline.config.words import nested, parse_overrides
from pipeline.workflow.carried import KEY, carry

NOTES = Path(".snakemake/iocache")  # which Snakemake writes, even in a dry run
# Flags that take several words, of which Snakemake keeps those of the last
FLAGS = {"--config": "--config", "-C": "--config"}
FLAGS |= {"--configfile": "--configfile", "--configfiles": "--configfile"}


def read_doors(workflow: Any, file: str) -> tuple[dict[str, object], dict[str, object]]:
    """The values of `file` and of --configfile, and those of --config, as `Experiment` takes them.

    Raises UserError if a word would be dropped, a value is not YAML, or Snakemake cannot write.
    """
    settings = workflow.config_settings
    if workflow.exec_mode == ExecMode.DEFAULT:  # not the job of another Snakemake
        check_writable(NOTES)
        check_repeats(sys.argv[1:])
        check_targets(sys.argv[1:])
    values, overrides = read_values([file, *settings.configfiles], settings.config_args or [])
    return values, carry(overrides, settings, of_environment(values, overrides))


def of_environment(
    values: Mapping[str, object],
    overrides: Mapping[str, object],
    environment: Mapping[str, str] = os.environ,
) -> dict[str, object]:
    """The keys that a variable of this machine gives, which pods do not have."""
    if KEY in overrides:
        return {}
    resolution, origin = resolve_resolution(layered(values, overrides), environment)
    return nested("data.resolution", resolution) if origin == "IMAGENET_RES" else {}


def check_writable(folder: Path) -> None:
    """Raise UserError if this user may not write to `folder`, or make it, in this project."""
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(
            f"{existing.absolute()} cannot be written by this user, and Snakemake writes there: "
            "work in a copy of this project that is yours"
        )


def read_values(
    files: Iterable[str | Path], words: Iterable[str]
) -> tuple[dict[str, object], dict[str, object]]:
    """The values of files, each laid over those before, and of the words of --config.

    Raises UserError if a file or a word cannot be read, or a word is dotted or `set` twice.
    """
    values: dict[str, object] = {}
    for file in files:
        values = lay(values, load_yaml(Path(file)))
    words = list(words)
    check_config(words)
    return values, parse_overrides(words)


def check_repeats(words: Iterable[str]) -> None:
    """Raise UserError if --config or --configfile is there twice."""
    flags = [flag_of(word) for word in words if word.startswith("-")]
    counts = Counter(FLAGS[flag] for flag in flags if flag in FLAGS)
    for flag, num in counts.items():
        if num > 1:
            raise UserError(
                f"{flag} is given {num} times, of which Snakemake would keep the last: write all "
                f"its words after one {flag}"
            )


def flag_of(word: str) -> str:
    """The flag of a word that begins with one, which a value may follow: `--flag=a`, `-Ca`."""
    return word.partition("=")[0] if word.startswith("--") else word[:2]


def check_config(words: Iterable[str]) -> None:
    """Raise UserError if a word after --config is dotted, or `set` is there twice."""
    keys = [word.partition("=")[0] for word in words]
    for word, key in zip(words, keys, strict=True):
        if "." in key:
            raise UserError(f"{word} cannot be given to --config: {in_set(word)}")
    if keys.count("set") > 1:
        raise UserError(
            "set is given twice, of which Snakemake would keep the last: put all keys into one, "
            "--config \"set=['train.lr=2e-4 sample.steps=18']\""
        )


def check_targets(words: Iterable[str]) -> None:
    """Raise UserError if a key is given instead of a file to make."""
    keys = known_keys()
    for word in words:
        if word.lstrip("+").partition("=")[0] in keys and "." in word.partition("=")[0]:
            raise UserError(f"{word} is not a file that a rule makes: {in_set(word)}")


def in_set(word: str) -> str:
    """How to give a key."""
    return f"write --config \"set=['{word}']\" (or make SET='{word}')"
