"""Samplers that could not be made are refused before the trainings that they would need."""

import pytest

from pipeline.base.errors import UserError
from pipeline.config import load
from pipeline.config.words import parse_overrides
from pipeline.workflow.experiment import Experiment

BASE = load.load_yaml(load.DEFAULT_FILE)


def experiment(*words: str) -> Experiment:
    return Experiment(BASE, parse_overrides([*words, "data.pack_dir=packs"]))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["experiment=tiny", "sample.guide={experiment: discrete_smoke}"],
            "discrete_smoke has workload=discrete_flow and model.values=4, and tiny workload=flow",
        ),
        (
            ["experiment=discrete_smoke", "sample.guide={experiment: imagenet_discrete}"],
            "model.values=256, and discrete_smoke workload=discrete_flow and model.values=4: a gu",
        ),
        (
            [
                *("experiment=tiny", "model.class_conditional=false", "sample.classes=balanced"),
                "sample.guide={experiment: lcm_mse_smoke}",
            ],
            "lcm_mse_smoke has workload=concept, and tiny workload=flow",
        ),
    ],
)
def test_a_guide_predicts_what_it_guides(words: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        experiment(*words, "sample.guidance=2")


def test_a_search_is_of_a_moment_that_is_stored() -> None:
    words = ("experiment=edm2_smoke", "sample.runs=[]", "sample.selected=true")
    with pytest.raises(UserError, match="sample.ema_images=999 is not among the .* numbers of im"):
        experiment(*words, "sample.ema_images=999")
    assert experiment(*words).selection
    assert experiment(*words, "sample.ema_images=16000").selection
