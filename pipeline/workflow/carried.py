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
MARK = "x"  # before the letters, lest Snakemake takes them for a number


def encoded(given: Mapping[str, Any]) -> str:
    """Values as letters, digits, - and _ alone."""
    text = json.dumps(dict(given), sort_keys=True)
    return MARK + base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def decoded(word: str) -> dict[str, Any]:
    """The values of `encoded`; raises UserError if they are none."""
    letters = word.removeprefix(MARK)
    try:
        padded = letters + "=" * (-len(letters) % 4)
        values: dict[str, Any] = json.loads(base64.urlsafe_b64decode(padded))
    except ValueError as error:
        raise UserError(f"{KEY}= is for jobs of Snakemake alone: leave it out") from error
    return values


def carry(files: Mapping[str, Any], settings: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """All values, and those of --config alone; from now on jobs get the latter as one word.

    `files`: Snakemake's config; `settings`: its config_settings.
    """
    files, given = dict(files), dict(settings.config)
    if KEY in given:
        given = decoded(str(given[KEY]))
        files = merge({key: value for key, value in files.items() if key != KEY}, given)
    if given:
        settings.config_args = [f"{KEY}={encoded(given)}"]
    return files, given
