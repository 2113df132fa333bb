"""Flow matching as a workload: velocity of the path from noise to the images of a pack."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.compute import draws, execution
from pipeline.config.model_keys import EDM2Keys, UNetKeys
from pipeline.config.schema import Config
from pipeline.data.reader import Reader, moved
from pipeline.flow import coupling, probability_path
from pipeline.flow.on_images import OnImages
from pipeline.flow.times import sample_times
from pipeline.flow.transport import Transport
from pipeline.flow.weighting import denoising_loss
from pipeline.networks import families


@dataclass(frozen=True)
class Batch:
    """x1 images, x0 noise (B,3,H,W) float32; t (B,) in [0,1]; labels (B,) with dropout applied.

    `keys` (B,2) int32: random words of the network's dropout; None: it has none.
    """

    # The path
    x0: Tensor
    x1: Tensor
    t: Tensor
    # Dropped at random
    labels: Tensor
    keys: Tensor | None


class FlowMatching(OnImages):
    """Trains the velocity v(x_t, t, label) of the conditional optimal-transport path."""

    by_duals: Transport | None = None  # of train.coupling=semidiscrete, once it is placed

    def place(self, device: torch.device, announce: bool) -> None:
        """Open the pack for batches on `device`: a copy there, or the memory map."""
        super().place(device, announce)
        self.by_duals = coupling.transport(self.opened, self.config)

    def batch(self, positions: np.ndarray) -> Batch:
        """All that the given positions (B,) of the run see."""
        return draw(self.opened, self.config, positions, self.by_duals)

    def rows(self, positions: np.ndarray) -> np.ndarray:
        """Rows of the pack that the positions see."""
        if self.by_duals is None:
            return super().rows(positions)
        x0 = coupling.noise_at(self.config, positions, self.opened)
        return self.by_duals.chosen(positions, x0)[0].cpu().numpy()

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Squared error of the velocity at x_t by train.weighting, its mean: a float32 scalar."""
        # State on the path
        layout = execution.memory_format(batch.x0.device)
        x_t = probability_path.interpolate(batch.x0, batch.x1, batch.t)
        inputs = x_t.contiguous(memory_format=layout), batch.t, batch.labels, batch.keys
        if self.config.train.weighting == "velocity":
            return probability_path.loss(model(*inputs), batch.x0, batch.x1)

        # As errors of a denoiser
        keys, uncertainty = self.config.model, None
        assert isinstance(keys, UNetKeys | EDM2Keys)  # config/workloads.py has checked it
        if families.family(keys).learns_uncertainty:
            velocity, uncertainty = model(*inputs, True)
        else:
            velocity = model(*inputs)
        return denoising_loss(velocity, batch.x0, batch.x1, batch.t, keys.sigma_data, uncertainty)

    def zeros(self, num: int, device: torch.device) -> Batch:
        """A batch of `num` black images without noise."""
        size = self.pack.record.resolution
        x = torch.zeros(num, 3, size, size, device=device)
        labels = torch.zeros(num, dtype=torch.int64, device=device)
        keys = self.dropout_keys(num, device)
        return Batch(x, x, torch.zeros(num, device=device), labels, keys)


def draw(
    reader: Reader, config: Config, positions: np.ndarray, by_duals: Transport | None = None
) -> Batch:
    """All that the given positions (B,) of the run see: a pure function of (seed, position).

    `by_duals`: coupling.transport of the reader and the configuration.
    """
    # Images and noise
    train, seed, classes = config.train, config.train.seed, reader.pack.record.classes
    x0, x1, labels = coupling.pairs(reader, config, positions, by_duals)
    # Draws by position
    index = moved(positions, reader.device)
    uniform = draws.uniform(seed, draws.TIME, index)
    dropped = draws.uniform(seed, draws.LABEL_DROPOUT, index)
    return Batch(
        x0=x0,
        x1=x1,
        t=sample_times(train.times, uniform, train.time_mean, train.time_std),
        labels=probability_path.drop_labels(labels, dropped, train.label_dropout, len(classes)),
        keys=draws.pairs(seed, draws.DROPOUT, index) if config.model.dropout > 0 else None,
    )
