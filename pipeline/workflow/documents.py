"""An experiment on documents as the Snakefile sees it: pipeline/workflow/documents.smk."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.base.errors import UserError
from pipeline.concept.pack import Record, normaliser_file, pack_folder
from pipeline.concept.predict_job import check_predictable
from pipeline.config import paths
from pipeline.config.concept_keys import OF_TRAINING
from pipeline.config.load import layered, validate
from pipeline.config.schema import Config
from pipeline.workflow.current_pack import stop
from pipeline.workflow.shared import Shared, existing


class Documents(Shared):
    """One resolved experiment on sentence vectors."""

    rules = "pipeline/workflow/documents.smk"
    maker = "prepare"

    def __init__(self, files: Mapping[str, object], command_line: Mapping[str, object]) -> None:
        """`files`: config.yaml and those of --configfile; `command_line`: --config."""
        super().__init__(validate(layered(files, command_line)))
        concept = self.config.concept
        assert concept is not None
        suffixes = {f"concept.{key}": getattr(concept, key) for key in ("suffix", "prompt_suffix")}
        self.suffix = [f for key, file in suffixes.items() for f in existing(key, file, "file")]
        words = [f"{key}={file}" for key, file in suffixes.items() if file is not None]
        # These change no vector of the pack, only its normaliser, or what `prepare` prints
        words += [f"concept.{key}={getattr(concept, key)}" for key in OF_TRAINING]
        self.prepare_settings = shlex.join([*shlex.split(self.settings), *words])
        self.samples = [f"{self.run}/predict/predicted.npy"]
        self.metrics = [f"{self.run}/metrics/scores.json"]

    def pack_problem(self) -> str:
        """Why results here are not of the pack that the keys name, or empty."""
        return pack_problem(self.config)

    def late_problem(self) -> str:
        """Why the predictions would be refused after the training, or empty."""
        return predict_problem(self.config)

    def weights_to_predict(self, workflow: Any) -> list[str]:
        """The weights; stops before the training if its predictions would be refused after it."""
        stop(workflow, self.late_problem)
        return self.weights

    def banner(self) -> str:
        """One line: experiment and data."""
        assert self.config.concept is not None
        documents = f"documents {self.data} ({self.config.concept.source})"
        return f"experiment {self.config.experiment}, {documents}"


def normaliser_problem(config: Config, folder: Path) -> str:
    """Why a pack lacks what the keys name, in a sentence; empty if it does not."""
    assert config.concept is not None
    if normaliser_file(folder, config.concept.scale).exists():
        return ""
    return (
        f"the pack in {folder} has no normaliser for concept.scale={config.concept.scale}: run "
        "`make data` with the same keys, which makes it (nothing else runs again)"
    )


def predict_problem(config: Config) -> str:
    """Why weights of this training could not predict, in a sentence; empty if they could."""
    assert config.concept is not None
    try:
        check_predictable(config.concept, config.model, "of the network")
    except UserError as error:
        return str(error)
    return ""


def pack_problem(config: Config) -> str:
    """Why results here may be of other documents, in a sentence; empty if nothing says so.

    They are of the pack that results/data/<name>.json describes.
    """
    file, folder = paths.record_file(config), pack_folder(config)
    if not file.exists():
        return ""  # the next job makes the pack
    if not (folder / "manifest.json").exists():
        return (
            f"there is no pack in {folder}, but the results here are of one ({file}): run "
            "`make data`, which makes it again (nothing else runs again if the documents are the "
            "same)"
        )
    record, pack = Record.read(file), Record.read(folder / "manifest.json")
    if record.sha256 == pack.sha256:
        return normaliser_problem(config, folder)
    return (
        f"the pack in {folder} is not the one that the results here are of ({file}): give another "
        "concept.name, or run `make data`, after which all results are made again of the pack that "
        "is there"
    )
