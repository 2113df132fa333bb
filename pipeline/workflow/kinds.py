"""Which kind of experiment the words ask for: one on images, or one on documents."""

from collections.abc import Mapping
from typing import Any

from pipeline.config.load import layered
from pipeline.config.workloads import SENTENCES
from pipeline.workflow.documents import Documents
from pipeline.workflow.experiment import Experiment


def experiment(files: Mapping[str, Any], command_line: Mapping[str, Any]) -> Experiment | Documents:
    """The experiment; `files`: config.yaml and those of --configfile, `command_line`: --config."""
    is_of_documents = layered(files, command_line).get("workload") == SENTENCES
    return (Documents if is_of_documents else Experiment)(files, command_line)
