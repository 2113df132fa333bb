"""A run of predictions, checked before anything expensive starts, and without loading torch."""

from dataclasses import dataclass
from pathlib import Path

from pipeline.base.errors import UserError
from pipeline.concept.pack import Documents, check_record, open_documents, pack_folder
from pipeline.config.concept_keys import Concept
from pipeline.config.model_keys import Model, TwoTowerKeys, read_model
from pipeline.config.older_form import LATER
from pipeline.config.paths import out_folder, run_folder, weights_file
from pipeline.config.schema import Config
from pipeline.config.stages import rank_keys
from pipeline.training.weights_file import WeightsAbout, read_about


@dataclass(frozen=True)
class Job:
    """All that is known before the first prediction."""

    config: Config
    documents: Documents
    weights: Path
    about: WeightsAbout
    out: Path

    @property
    def identity(self) -> dict[str, object]:
        """Values that all ranks must share; the weights by what they say of themselves."""
        return {**rank_keys(self.config, "predict"), "weights": self.about.to_json()}


def job_of(config: Config, words: dict[str, str]) -> Job:
    """The job that a configuration and the paths of the command line ask for.

    Raises UserError about the first problem.
    """
    # Documents
    concept = check_workload(config)
    documents = open_documents(config)
    if "record" in words:
        check_record(documents, pack_folder(config), Path(words["record"]))

    # A network that was trained on them
    weights = Path(words["weights"]) if "weights" in words else weights_file(config)
    about = read_about(weights)
    check_trained(config, documents, weights, about)
    check_predictable(concept, read_model(about.section("model")), f"of weights {weights}")
    out = out_folder(Path(words.get("out", run_folder(config) / "predict")))
    return Job(config, documents, weights, about, out)


def check_workload(config: Config) -> Concept:
    """The keys of documents; raises UserError unless the configuration is of them."""
    if config.concept is None or config.workload != "concept":
        raise UserError(
            f"workload={config.workload} has no sentences to predict: give an experiment with "
            "workload=concept, such as experiment=lcm_mse_smoke"
        )
    return config.concept


def check_predictable(concept: Concept, model: Model, whose: str) -> None:
    """Raise UserError unless a training of `model` can predict as the keys say.

    `whose`: where its noise levels come from, such as "of weights PATH".
    """
    if concept.held_out == 0:
        raise UserError(
            "concept.held_out=0 leaves no document to score: train with a share of the documents "
            "held out, such as concept.held_out=0.1, and predict with the same"
        )
    if isinstance(model, TwoTowerKeys) and concept.denoising_steps > model.noise_levels:
        raise UserError(
            f"concept.denoising_steps={concept.denoising_steps} is more than the "
            f"{model.noise_levels} noise levels {whose}: give at most as many"
        )


def check_trained(config: Config, documents: Documents, path: Path, about: WeightsAbout) -> None:
    """Raise UserError unless the weights are of these documents without those that are scored."""
    # The same documents
    assert config.concept is not None
    if about.config.get("workload") != "concept":
        raise UserError(f"weights {path} are not of a training with workload=concept: give others")
    if about.record.get("sha256") != documents.about["sha256"]:
        raise UserError(
            f"weights {path} were trained on other documents, or with another normaliser, than "
            f"pack {pack_folder(config)} has: give that pack, or train again"
        )

    # The same ones held out
    trained = {**LATER["concept"], **about.section("concept")}
    for key in ("held_out", "max_sentences"):
        if (value := getattr(config.concept, key)) != trained[key]:
            raise UserError(
                f"weights {path} were trained with concept.{key}={trained[key]}, not {value}: give "
                "the same to all steps"
            )
