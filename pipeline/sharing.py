"""How the work of a step is shared out: processes for the devices, images for the processes."""

from pipeline import gpus
from pipeline.errors import UserError
from pipeline.keys import Config

# Images of 64 x 64 px that one forward and backward pass takes at most where runtime.micro_batch
# is auto and no GPU is there to measure (pipeline/fitting.py). The reference network then keeps
# about 17 GB of bf16 activations.
AUTO_IMAGES, AUTO_SIZE = 64, 64


def processes(wanted: int, launcher: str, device: str, visible: list[str]) -> int:
    """How many ranks to start for a job that may take `wanted` GPUs.

    Without a GPU the ranks share the CPU cores: at most one a core, and where that is fewer than
    wanted a power of two. Raises UserError where some GPUs are visible but fewer than wanted.
    """
    if launcher == "none":
        return 1
    if visible and device != "cpu":
        if wanted > len(visible):
            raise UserError(
                f"{wanted} GPUs are asked for but {len(visible)} visible "
                f"({gpus.said_by()}): "
                f"pass --resources gpu={len(visible)} or make more devices visible"
            )
        return max(1, wanted)
    if device == "cuda":
        raise UserError("runtime.device=cuda but no GPU is visible: use runtime.device=auto")
    cores = gpus.cpu_cores()
    return max(1, wanted if wanted <= cores else 1 << (cores.bit_length() - 1))


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
