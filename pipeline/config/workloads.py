"""Which keys go with which workload: velocities of images, or values of tokens."""

from pipeline.base.errors import UserError
from pipeline.config.model_keys import DiscreteUNetKeys
from pipeline.config.schema import Config, Sample

TOKENS = "discrete_flow"  # the workload on tokens

# Keys of `train` with the values that a discrete flow can have, and why it cannot have others
ON_TOKENS = {
    "times": (("uniform", "logit_normal"), "the others are of a ratio of noise to data"),
    "weighting": (("velocity",), "its loss is that of train.token_loss"),
    "coupling": (("independent",), "masks are not near any image"),
}


def check_training(config: Config) -> None:
    """Raise UserError if the network does not fit the images, or the workload and its keys."""
    config.model.check(config.data.resolution)
    # Network and workload
    of_tokens, network = config.workload == TOKENS, isinstance(config.model, DiscreteUNetKeys)
    if of_tokens != network:
        remedy = "model.kind=discrete_unet" if of_tokens else f"workload={TOKENS}"
        raise UserError(
            f"workload={config.workload} does not train a network of model.kind="
            f"{config.model.kind}: give {remedy}, as the experiment cifar10_discrete does"
        )

    # Keys of other workloads
    for key, (values, why) in ON_TOKENS.items() if of_tokens else ():
        if getattr(config.train, key) not in values:
            raise UserError(
                f"train.{key}={getattr(config.train, key)} is not possible with workload={TOKENS}, "
                f"since {why}: give train.{key}={' or '.join(values)}"
            )


def check_solver(sample: Sample, of_tokens: bool) -> None:
    """Raise UserError if a sampler is not for the network, one of tokens or one of velocities."""
    # One or the other
    if of_tokens != sample.jumps:
        network = "tokens, which jump" if of_tokens else "velocities, which an ODE follows"
        remedy = "jump" if of_tokens else "euler, midpoint, heun, rk4 or dopri5"
        raise UserError(
            f"sample.solver={sample.solver} is not possible, since the network is one of "
            f"{network}: give sample.solver={remedy}"
        )

    # From all masks on
    grid = sample.grid
    if of_tokens and (grid[0] != 0 if isinstance(grid, tuple) else grid != "uniform"):
        raise UserError(
            f"sample.grid={grid if isinstance(grid, str) else list(grid)} is not possible with "
            "sample.solver=jump: give sample.grid=uniform, or a list of times from 0 on"
        )
