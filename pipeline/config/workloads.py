"""Which networks and keys go with which workload."""

from dataclasses import dataclass, field
from typing import Any

from pipeline.base.errors import UserError
from pipeline.config.concept_keys import OF_DENOISING
from pipeline.config.model_keys import TwoTowerKeys
from pipeline.config.older_form import LATER
from pipeline.config.schema import Config, Sample

TOKENS = "discrete_flow"  # the workload on tokens
SENTENCES = "concept"  # the workload on sentence vectors


@dataclass(frozen=True)
class Rules:
    """The needs of a workload: values of model.kind, and of keys of `train` with the reason."""

    networks: tuple[str, ...]
    example: str  # an experiment in config.yaml
    train: dict[str, tuple[tuple[Any, ...], str]] = field(default_factory=dict)


OF_JUMPS = ("divergence_free", "temperature", "categorical")  # keys of `sample`
OF_IMAGES = "it is about images"
RULES = {
    "flow": Rules(networks=("unet", "edm2"), example="imagenet"),
    TOKENS: Rules(
        networks=("discrete_unet",),
        example="cifar10_discrete",
        train={
            "times": (("uniform", "logit_normal"), "the others are of a ratio of noise to data"),
            "weighting": (("velocity",), "its loss is that of train.token_loss"),
            "coupling": (("independent",), "masks are not near any image"),
        },
    ),
    SENTENCES: Rules(
        networks=("lcm", "lcm_two_tower"),
        example="lcm_mse_smoke",
        train={
            "times": (("uniform",), OF_IMAGES),
            "weighting": (("velocity",), OF_IMAGES),
            "coupling": (("independent",), OF_IMAGES),
            "label_dropout": ((0.0,), OF_IMAGES),
            "flip": ((False,), OF_IMAGES),
        },
    ),
}


def check_training(config: Config) -> None:
    """Raise UserError if the network does not fit the images, or the workload and its keys."""
    config.model.check(config.data.resolution)
    _check_network(config.workload, config.model.kind)
    if config.workload == SENTENCES and config.concept is None:
        raise UserError(
            f"workload={SENTENCES} needs the section concept, which names its documents: give "
            "concept.name and concept.source"
        )
    _check_denoising(config)
    for key, (values, why) in RULES[config.workload].train.items():
        if (value := getattr(config.train, key)) not in values:
            remedy = " or ".join(str(v).lower() for v in values)
            raise UserError(
                f"train.{key}={str(value).lower()} is not possible with workload="
                f"{config.workload}, since {why}: give train.{key}={remedy}"
            )


def _check_network(workload: str, kind: str) -> None:
    """Raise UserError unless the workload trains such networks."""
    if kind in RULES[workload].networks:
        return
    trains_it = next(name for name, rules in RULES.items() if kind in rules.networks)
    own = RULES[workload].networks
    if workload == "flow":  # the default: the network says what is meant
        remedy, example = f"workload={trains_it}", RULES[trains_it].example
    else:
        remedy, example = f"model.kind={' or '.join(own)}", RULES[workload].example
    raise UserError(
        f"workload={workload} does not train a network of model.kind={kind}: give {remedy}, as "
        f"the experiment {example} does"
    )


def _check_denoising(config: Config) -> None:
    """Raise UserError if keys say how to denoise, and the network does not."""
    if config.concept is None or isinstance(config.model, TwoTowerKeys):
        return
    for key in OF_DENOISING:
        if (value := getattr(config.concept, key)) != LATER["concept"][key]:
            raise UserError(
                f"concept.{key}={value} is not possible, since only a network of "
                "model.kind=lcm_two_tower reads it: leave it out"
            )


def check_solver(sample: Sample, of_tokens: bool) -> None:
    """Raise UserError if a sampler is not for the network, one of tokens or one of velocities."""
    # One or the other
    if of_tokens != sample.jumps:
        network = "tokens, which jump" if of_tokens else "velocities, which an ODE follows"
        remedy = "jump" if of_tokens else "euler, midpoint, heun, rk4, ab2, ab3, dopri5 or learned"
        raise UserError(
            f"sample.solver={sample.solver} is not possible, since the network is one of "
            f"{network}: give sample.solver={remedy}"
        )

    # Keys of jumps alone
    for key in () if of_tokens else OF_JUMPS:
        if (value := getattr(sample, key)) != LATER["sample"][key]:
            raise UserError(
                f"sample.{key}={value} is not possible, since only sample.solver=jump reads it, "
                "and the network is one of velocities: leave it out"
            )

    # Its own times
    if sample.learned and sample.grid != "uniform":
        raise UserError(
            "sample.solver=learned finds its times itself: leave sample.grid=uniform, or give "
            "another solver"
        )

    # From all masks on
    grid = sample.grid
    if of_tokens and (grid[0] != 0 if isinstance(grid, tuple) else grid != "uniform"):
        raise UserError(
            f"sample.grid={grid if isinstance(grid, str) else list(grid)} is not possible with "
            "sample.solver=jump: give sample.grid=uniform, or a list of times from 0 on"
        )
