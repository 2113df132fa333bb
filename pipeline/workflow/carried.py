"""The values of --config on their way into jobs of a cluster, without any character of a shell.

Snakemake hands a job the words of --config as they were typed, through quotes of its own and of
the cluster's, so that a `$` or an apostrophe in a path means something else there.
"""

import base64
import json
from collections.abc import Mapping
from typing import Any

from pipeline.base.errors import UserError
from pipeline.config.words import merge

KEY = "carried"  # the one word of --config that jobs get
MARK = "x"  # before the letters, which Snakemake could take for a number


def encoded(values: Mapping[str, object]) -> str:
    """Values as letters, digits, - and _ alone."""
    text = json.dumps(dict(values), sort_keys=True)
    return MARK + base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def decoded(word: str) -> dict[str, object]:
    """The values of `encoded`; raises UserError if `word` is anything else."""
    letters = word.removeprefix(MARK)
    try:
        padded = letters + "=" * (-len(letters) % 4)
        values: dict[str, object] = json.loads(base64.urlsafe_b64decode(padded))
    except ValueError as error:
        raise UserError(f"{KEY}= is for jobs of Snakemake alone: leave it out") from error
    return values


def carry(
    words: Mapping[str, object], settings: Any, more: Mapping[str, object] | None = None
) -> dict[str, object]:
    """The values of --config; from now on jobs get them as one word.

    `words`: those values as they were read; `settings`: Snakemake's config_settings; `more`: values
    for jobs alone, which lack the variables that these come from.
    """
    values = decoded(str(words[KEY])) if KEY in words else dict(words)
    if of_jobs := merge(values, more or {}):
        settings.config_args = [f"{KEY}={encoded(of_jobs)}"]
    return values
