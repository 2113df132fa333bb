"""Lines of Snakemake that tell a person nothing, kept out of the brief output.

`--quiet` has no word for them but the one that drops errors too. Snakemake's log has them all.
"""

import logging

from snakemake.logging import logger

from pipeline.launching import console

CHATTER = (
    *("Select jobs to execute", "Execute ", "Building DAG of jobs", "Using shell: "),
    *("Conda environments: ignored", "Assuming unrestricted shared filesystem"),
    *("Config file config.yaml is extended", "Workflow defines that rule"),
)


def is_kept(record: logging.LogRecord) -> bool:
    """Whether a line stays: all but those of CHATTER."""
    return not record.getMessage().startswith(CHATTER)


def hush() -> None:
    """Keep CHATTER off the terminal if the brief form is asked for."""
    if not console.is_brief():
        return
    for handler in logger.handlers:
        if not isinstance(handler, logging.FileHandler):
            handler.addFilter(is_kept)
