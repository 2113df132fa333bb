"""How the images of a step are shared out: over the processes, and over their passes."""

from pipeline.base.errors import UserError
from pipeline.config.schema import Config


def images_of_a_rank(config: Config, world: int) -> int:
    """Images of a step that each of `world` processes takes.

    Raises UserError if the batch cannot be shared out so, or runtime.micro_batch does not fit.
    """
    batch, per_pass = config.train.batch, config.runtime.micro_batch
    # An equal share each
    if batch % world:
        raise UserError(
            f"train.batch={batch} cannot be divided over {world} processes: use a number of GPUs "
            f"that divides it (or change train.batch, which changes the experiment)"
        )

    # Whole passes only
    local = batch // world
    if per_pass != "auto" and local % per_pass:
        raise UserError(
            f"runtime.micro_batch={per_pass} does not divide the {local} of train.batch={batch} "
            f"that each of {world} processes takes"
        )
    return local


def micro_batch(config: Config, world: int, most: int) -> int:
    """Images per forward pass and rank: runtime.micro_batch, or the largest divisor up to `most`.

    Raises UserError if the batch cannot be shared out.
    """
    local = images_of_a_rank(config, world)
    if config.runtime.micro_batch != "auto":
        return config.runtime.micro_batch
    return next(n for n in range(min(local, most), 0, -1) if local % n == 0)
