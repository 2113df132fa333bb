"""Discrete flows: the keys that go with them, published recipes, the keys of their stages."""

import json
from typing import get_args

import pytest

from pipeline.base.errors import UserError
from pipeline.config import load
from pipeline.config.schema import Config
from pipeline.config.stages import STAGE_KEYS, stage_keys
from pipeline.config.workloads import RULES
from pipeline.train import WORKLOADS
from tests.conftest import resolved


def test_every_workload_has_its_rules_and_its_trainer() -> None:
    assert set(RULES) == set(WORKLOADS) == set(get_args(Config.model_fields["workload"].annotation))
    for workload, rules in RULES.items():
        assert resolved(f"experiment={rules.example}").workload == workload


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["workload=flow"], "workload=flow does not train a network of model.kind=discrete_unet"),
        (["model.kind=unet"], "workload=discrete_flow does not train a network of model.kind=unet"),
        (
            ["train.times=edm_skew"],
            "since the others are of a ratio of noise to data: give train",
        ),
        (["train.weighting=denoising"], "since its loss is that of train.token_loss"),
        (["train.coupling=optimal_transport"], "since masks are not near any image: give train.co"),
        (["train.coupling=semidiscrete"], "since masks are not near any image: give train.coupli"),
        (["model.values=255"], "model.values=255 is not valid: expected a divisor of 256"),
        (["model.channels=48"], "model.channels=48 is not valid"),
        (["model.time_scale=2"], "unknown key model.time_scale of model.kind=discrete_unet"),
        (["train.mask_exponent=0"], "train.mask_exponent=0 is not valid"),
        (["data.resolution=18"], "data.resolution=18 cannot be halved 2 times"),
    ],
)
def test_keys_that_do_not_go_together_are_refused(words: list[str], sentence: str) -> None:
    with pytest.raises(UserError) as error:
        resolved("experiment=cifar10_discrete", *words)
    assert sentence in str(error.value)


def test_the_published_recipe_key_for_key() -> None:
    config = resolved("experiment=cifar10_discrete")
    train, sample, model = config.train, config.sample, config.model
    assert (train.batch, train.images) == (8 * 32, 2500 * 50_000)
    assert (train.label_dropout, model.class_conditional, sample.guidance) == (1, False, 1)
    assert 0.5 ** (train.batch / train.ema_halflife_images[0]) == pytest.approx(0.999, abs=1e-8)
    assert (train.mask_exponent, train.token_loss) == (3, "cross_entropy")
    assert (train.lr, train.lr_schedule, train.betas) == (1e-4, "constant", (0.9, 0.95))
    assert (sample.solver, sample.steps, sample.divergence_free) == ("jump", 1024, "symmetric")
    assert {
        "channels": 96, "channel_mult": (3, 4, 4), "blocks": 5, "attention_at": (2,),
        "dropout": 0.4, "values": 256, "residual_updown": False, "conv_resample": False,
    }.items() <= model.model_dump().items()  # fmt: skip


@pytest.mark.parametrize("name", ["cifar10_discrete", "imagenet_discrete", "discrete_smoke"])
def test_a_stage_gets_its_keys_back_from_its_json(name: str) -> None:
    """Also without the name of the experiment, as Snakemake hands them over."""
    config = resolved(f"experiment={name}", "data.source=train")
    for stage in STAGE_KEYS:
        wanted = stage_keys(config, stage)
        again, _ = load.load_step([f"config={json.dumps(wanted)}"], ())
        assert stage_keys(again, stage) == wanted
    assert again.workload == "flow"  # of the last stage, which does not say
    train = json.dumps(stage_keys(config, "train"))
    assert load.load_step([f"config={train}"], ())[0].workload == "discrete_flow"


def test_the_keys_of_a_velocity_stay_those_of_a_velocity(tmp_path: object) -> None:
    """Keys that a training left out are not those of the experiment that is named beside them."""
    keys = stage_keys(resolved("experiment=tiny"), "train")
    assert "workload" not in keys and "mask_exponent" not in keys["train"]
    tree = load.with_later(keys, load.load_yaml(load.DEFAULT_FILE))
    assert tree["workload"] == "flow"
    partly = load.with_later({"model": {"channels": 96}}, load.load_yaml(load.DEFAULT_FILE))
    assert "workload" not in partly
