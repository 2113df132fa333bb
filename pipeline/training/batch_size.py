"""How the work of a step is shared out: processes for the devices, images for the processes."""

from pipeline.base.errors import UserError
from pipeline.config.schema import Config

# Images of 64 x 64 px that one forward and backward pass takes at most where runtime.micro_batch
# is auto and no GPU is there to measure (fitting.py). The reference network then keeps
# about 17 GB of bf16 activations.
AUTO_IMAGES, AUTO_SIZE = 64, 64


def micro_batch(config: Config, world: int) -> int:
    """Images per forward pass and rank; raises UserError where the batch cannot be shared out."""
    batch, wanted = config.train.batch, config.runtime.micro_batch
    if batch % world:
        raise UserError(
            f"train.batch={batch} cannot be divided over {world} processes: use a number of GPUs "
            f"that divides it (or change train.batch, which changes the experiment)"
        )
    local = batch // world
    if wanted == "auto":
        most = max(1, round(AUTO_IMAGES * (AUTO_SIZE / config.data.resolution) ** 2))
        return next(n for n in range(min(local, most), 0, -1) if local % n == 0)
    if local % wanted:
        raise UserError(
            f"runtime.micro_batch={wanted} does not divide the {local} images of a process "
            f"(train.batch={batch} over {world})"
        )
    return wanted
