"""Which kind of experiment the words ask for: one on images, or one on documents.

    python -m pipeline.workflow.kinds --config experiment=NAME

prints the rule that makes its pack, for the Makefile.
"""

import argparse
from collections.abc import Mapping

from pipeline.base.errors import run_main
from pipeline.config.load import DEFAULT_FILE, layered
from pipeline.config.workloads import SENTENCES
from pipeline.workflow.documents import Documents
from pipeline.workflow.doors import read_values
from pipeline.workflow.experiment import Experiment

Kind = type[Experiment] | type[Documents]


def kind(files: Mapping[str, object], command_line: Mapping[str, object]) -> Kind:
    """The class; `files`: config.yaml and those of --configfile, `command_line`: --config."""
    is_of_documents = layered(files, command_line).get("workload") == SENTENCES
    return Documents if is_of_documents else Experiment


def experiment(
    files: Mapping[str, object], command_line: Mapping[str, object]
) -> Experiment | Documents:
    """The experiment, resolved and checked; arguments as those of `kind`."""
    return kind(files, command_line)(files, command_line)


def main(argv: list[str]) -> None:
    """Entry point; arguments as snakemake takes them."""
    parser = argparse.ArgumentParser(prog="pipeline.workflow.kinds", description=__doc__)
    parser.add_argument("--configfile", nargs="+", default=[])
    parser.add_argument("--config", nargs="+", default=[])
    options = parser.parse_args(argv)
    print(kind(*read_values([DEFAULT_FILE, *options.configfile], options.config)).maker)


if __name__ == "__main__":
    run_main(main, own_help=True)
