"""The section `concept` beside the others: which keys go with documents, and which do not."""

from typing import Any

from pipeline.base.errors import UserError
from pipeline.config.schema import Config

WORKLOAD = "concept"
NETWORK = "lcm"
# Keys of `train` that are about images, with the value that means nothing
OF_IMAGES: dict[str, Any] = {
    "times": "uniform",
    "weighting": "velocity",
    "coupling": "independent",
    "label_dropout": 0.0,
    "flip": False,
}


def check_concept(config: Config) -> None:
    """Raise UserError unless workload, network and data are all of sentence vectors, or none is."""
    # Network and workload
    of_sentences = config.workload == WORKLOAD
    if of_sentences != (config.model.kind == NETWORK):
        remedy = f"model.kind={NETWORK}" if of_sentences else f"workload={WORKLOAD}"
        raise UserError(
            f"workload={config.workload} does not train a network of model.kind="
            f"{config.model.kind}: give {remedy}, as the experiment lcm_mse_smoke does"
        )
    if not of_sentences:
        return

    # Its documents
    if config.concept is None:
        raise UserError(
            f"workload={WORKLOAD} needs the section concept, which names its documents: give "
            "concept.name and concept.source"
        )

    # Keys of images
    for key, value in OF_IMAGES.items():
        if (given := getattr(config.train, key)) != value:
            raise UserError(
                f"train.{key}={given} is about images, which workload={WORKLOAD} does not have: "
                f"give train.{key}={str(value).lower()}"
            )
