"""The networks that are sampled, and the images that they make."""

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.base.errors import OneRankError
from pipeline.compute import draws, execution
from pipeline.compute.distributed import Ranks
from pipeline.config.model_keys import DiscreteUNetKeys, read_model
from pipeline.config.samplers import class_numbers
from pipeline.drawing import pictures
from pipeline.drawing.tiles import row_names
from pipeline.networks import families
from pipeline.sampling import strip, time_grids
from pipeline.sampling.field import Field
from pipeline.sampling.job import Job, Weights
from pipeline.sampling.jumps import Jumps
from pipeline.training.weights_file import load_weights

Networks = tuple[nn.Module, nn.Module | None]  # the network that is sampled, and its guide


def build(job: Job, group: Ranks, tensors: dict[str, Tensor] | None = None) -> Networks:
    """The network and its guide, ready to evaluate.

    `tensors`: the weights of the network, if they are not those in its file.
    """
    execution.set_float32(job.config.sample.precision, group.device)
    guide = None if job.guide is None else build_net(job, job.guide, group)
    return build_net(job, job.weights, group, tensors), guide


def build_net(
    job: Job, weights: Weights, group: Ranks, tensors: dict[str, Tensor] | None = None
) -> nn.Module:
    """One network with its averaged weights: `tensors`, or those in its file."""
    model = read_model(weights.about.section("model"))
    net = families.build(model, len(weights.data.classes))
    net.load_state_dict(load_weights(weights.path) if tensors is None else tensors)
    net.eval().requires_grad_(False)
    return execution.prepare(net, group.device, job.config.runtime.compile, group.first)


def class_labels(job: Job, index: np.ndarray) -> np.ndarray:
    """Class of each image index (int64) by sample.classes, -1 for a network without classes."""
    # No classes
    names = job.weights.classes
    if names is None:
        return np.full_like(index, -1)

    # Equal shares of all, or of the chosen ones
    sample = job.config.sample
    if sample.classes not in ("histogram", "random"):
        chosen = class_numbers(sample, names)
        return index % len(names) if chosen is None else np.array(chosen)[index % len(chosen)]

    # Drawn, each class as likely as any other
    if sample.classes == "random":
        return draws.category(job.seed, draws.SAMPLE_CLASS, index, [1] * len(names))

    # Drawn by the shares of the training
    per_class = job.weights.data.per_class or {}
    counts = [per_class[name] for name in names]
    return draws.category(job.seed, draws.SAMPLE_CLASS, index, counts)


def grid_of(job: Job) -> Tensor:
    """The times (N+1,) float64 of the sampler's steps: see time_grids.times."""
    if job.learned is not None:
        return torch.tensor(job.learned.times, dtype=torch.float64)
    return time_grids.times(job.config.sample)


def start_batch(
    job: Job, networks: Networks, index: np.ndarray, device: torch.device
) -> tuple[Field, Tensor]:
    """The field or jumps of the images with the given indices, and their first state (B,3,H,W)."""
    # Classes
    sample, data = job.config.sample, job.weights.data
    classes = torch.from_numpy(class_labels(job, index)).to(device)
    labels = torch.where(classes < 0, len(data.classes), classes)
    no_class = None if job.weights.classes is None else len(data.classes)
    indices = torch.from_numpy(index).to(device)

    # Tokens that jump
    model = read_model(job.weights.about.section("model"))
    if isinstance(model, DiscreteUNetKeys):
        exponent = job.weights.mask_exponent
        jumps = Jumps(sample, networks, labels, no_class, model, exponent, job.seed, indices)
        return jumps, jumps.start(data.resolution)

    # Noise, and the field that carries it
    shape = (3, data.resolution, data.resolution)
    x0 = draws.normal(job.seed, draws.SAMPLE_NOISE, indices, shape)
    x0 = x0.contiguous(memory_format=execution.memory_format(device))
    net, guide = networks
    field = Field(sample, net, labels, no_class, guide, job.learned)
    return field, time_grids.start_state(x0, grid_of(job))


@torch.inference_mode()
def sample_images(
    job: Job, networks: Networks, index: np.ndarray, device: torch.device
) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (B,H,W,3) with the given indices, and the network evaluations (B,) of each.

    Raises OneRankError if their velocity is not finite, or a step underflows.
    """
    label = f"images {index[0]} to {index[-1]} of seed {job.seed}"
    # From noise on
    field, x = start_batch(job, networks, index, device)
    try:
        x = field.solve(x, grid_of(job))
    except ArithmeticError as error:
        raise OneRankError(f"{label} cannot be sampled: {error}") from error

    # No broken image is kept
    if not x.isfinite().all():
        raise OneRankError(
            f"{label} are not finite: take weights from before the training failed, or another "
            "sample.precision"
        )
    return field.pixels(x), field.evaluations.cpu().numpy()


@torch.inference_mode()
def states(
    job: Job, networks: Networks, index: np.ndarray, device: torch.device
) -> tuple[list[float], np.ndarray]:
    """Times (T,) on the way to the images with the given indices, and states uint8 (T,B,H,W,3)."""
    field, x = start_batch(job, networks, index, device)
    sections = strip.sections(grid_of(job), job.config.sample.adaptive)
    times, columns = zip(*strip.states(sections, field.solve, x), strict=True)
    return list(times), np.stack([field.pixels(column) for column in columns])


def save_strip(job: Job, networks: Networks, device: torch.device) -> None:
    """Write strip.png: how the first images come out of their noise."""
    index = np.arange(min(strip.ROWS, job.config.sample.num), dtype=np.int64)
    size = job.config.runtime.sample_batch
    parts = [states(job, networks, index[k : k + size], device) for k in index[::size]]
    images = np.concatenate([part for _, part in parts], axis=1)
    names = row_names(class_labels(job, index), job.weights.classes)
    pictures.save_strip(job.out / "strip.png", parts[0][0], images, names)
