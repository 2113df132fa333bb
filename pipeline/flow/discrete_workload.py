"""Discrete flow matching as a workload: the values of an image out of masks."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.compute import draws
from pipeline.config.model_keys import DiscreteUNetKeys
from pipeline.config.schema import Config
from pipeline.data.reader import Reader, load_pixels, moved
from pipeline.flow import mixture_path, probability_path
from pipeline.flow.on_images import OnImages
from pipeline.flow.times import sample_times
from pipeline.flow.tokens import tokens_of


@dataclass(frozen=True)
class TokenBatch:
    """x1 tokens of images, x_t those of the path (B,3,H,W) int64; t (B,) in (0,1).

    `labels` (B,) with dropout applied; `keys` (B,2) int32: random words of the network's dropout;
    None: it has none.
    """

    # The path
    x1: Tensor
    x_t: Tensor
    t: Tensor
    # Dropped at random
    labels: Tensor
    keys: Tensor | None


class DiscreteFlow(OnImages):
    """Trains the prediction p(x1 | x_t, label) of every hidden value of an image."""

    def batch(self, positions: np.ndarray) -> TokenBatch:
        """All that the given positions (B,) of the run see."""
        return draw(self.opened, self.config, positions)

    def loss(self, model: nn.Module, batch: TokenBatch) -> Tensor:
        """The loss by train.token_loss, its mean over all values: a float32 scalar."""
        logits = model(batch.x_t, batch.t, batch.labels, batch.keys)
        if self.config.train.token_loss == "cross_entropy":
            return mixture_path.cross_entropy(logits, batch.x1)
        t, exponent = batch.t.view(-1, 1, 1, 1), self.config.train.mask_exponent
        return mixture_path.generalised_kl(logits, batch.x1, batch.x_t, t, exponent)

    def zeros(self, num: int, device: torch.device) -> TokenBatch:
        """A batch of `num` black images without masks."""
        size = self.pack.record.resolution
        x = torch.zeros(num, 3, size, size, dtype=torch.int64, device=device)
        labels, t = torch.zeros_like(x[:, 0, 0, 0]), torch.zeros(num, device=device)
        return TokenBatch(x, x, t, labels, self.dropout_keys(num, device))


def draw(reader: Reader, config: Config, positions: np.ndarray) -> TokenBatch:
    """All that the given positions (B,) of the run see: a pure function of (seed, position)."""
    # Images and their tokens
    train, seed, model = config.train, config.train.seed, config.model
    assert isinstance(model, DiscreteUNetKeys)  # config/workloads.py has checked it
    pixels, labels = load_pixels(reader, positions, train.flip)
    x1 = tokens_of(pixels, model.values)

    # Draws by position
    index = moved(positions, reader.device)
    uniform = draws.uniform(seed, draws.TIME, index)
    t = sample_times(train.times, uniform, train.time_mean, train.time_std)
    hidden = draws.uniforms(seed, draws.TRAIN_NOISE, index, tuple(x1.shape[1:]))
    dropped = draws.uniform(seed, draws.LABEL_DROPOUT, index)
    num_classes = len(reader.pack.record.classes)
    return TokenBatch(
        x1=x1,
        x_t=mixture_path.masked(x1, hidden, t.view(-1, 1, 1, 1), train.mask_exponent, model.mask),
        t=t,
        labels=probability_path.drop_labels(labels, dropped, train.label_dropout, num_classes),
        keys=draws.pairs(seed, draws.DROPOUT, index) if model.dropout > 0 else None,
    )
