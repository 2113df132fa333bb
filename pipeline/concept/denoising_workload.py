"""Denoising as a workload: each sentence of a document, out of noise and the sentences before it.

As in pipeline/concept/workload.py, but every sentence of a piece is a target, the first too, unless
it is a pair; and noise, levels and contexts that are left out are functions of the seed and the
position (LCM team 2024, section 2.3.2).
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.compute import draws
from pipeline.concept.loss import denoising_error
from pipeline.concept.network import Layer
from pipeline.concept.noise import noise_of, signals
from pipeline.concept.pack import Documents
from pipeline.concept.two_tower import DenoiserLayer, TwoTower
from pipeline.concept.workload import Batch, NextSentence
from pipeline.config.model_keys import TwoTowerKeys
from pipeline.config.schema import Config
from pipeline.data.reader import moved


@dataclass(frozen=True)
class NoisyBatch(Batch):
    """A batch with its noise: see TwoTower.forward."""

    noise: tuple[Tensor, Tensor, Tensor]  # signal (B,T), noise (B,T), normals (B,T,D)
    levels: Tensor  # (B,T) int64
    alone: Tensor  # (B,T) bool: sentences without a context


class DenoisedSentence(NextSentence):
    """Trains a network that takes the noise from sentences, whose context it reads."""

    UNPREDICTED = 0

    def __init__(self, config: Config, documents: Documents) -> None:
        super().__init__(config, documents)
        assert isinstance(config.model, TwoTowerKeys)
        self.towers = config.model
        signal = signals(self.towers.noise_levels)
        self.signal, self.noise = signal.float(), noise_of(signal).float()

    def place(self, device: torch.device, announce: bool) -> None:
        """Give batches on `device`, from the memory map, and keep the table of levels there."""
        super().place(device, announce)
        self.signal, self.noise = self.signal.to(device), self.noise.to(device)

    def build(self) -> nn.Module:
        """The network, with the normaliser among its buffers."""
        return TwoTower(self.towers, self.documents.normaliser, self.most)

    def batch(self, positions: np.ndarray) -> NoisyBatch:
        """The pieces at positions (B,) of one step, and what makes them noisy."""
        plain, index = super().batch(positions), moved(positions, self.device)
        seed, shape = self.config.train.seed, plain.vectors.shape[1:]
        uniforms = draws.uniforms(seed, draws.TIME, index, shape[:1])
        dropped = draws.uniforms(seed, draws.LABEL_DROPOUT, index, shape[:1])
        alone = dropped < self.towers.context_dropout
        normals = draws.normal(seed, draws.TRAIN_NOISE, index, shape)
        return self.noisy(plain, (uniforms * self.towers.noise_levels).long(), alone, normals)

    def noisy(self, plain: Batch, levels: Tensor, alone: Tensor, normals: Tensor) -> NoisyBatch:
        """A batch with its noise."""
        signal, noise = (table.to(levels.device)[levels] for table in (self.signal, self.noise))
        return NoisyBatch(**vars(plain), noise=(signal, noise, normals), levels=levels, alone=alone)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Squared distance per sentence, as this batch's share of the step: a float32 scalar."""
        assert isinstance(batch, NoisyBatch)
        estimates, true = model(batch.vectors, batch.noise, batch.levels, batch.alone, batch.keys)
        error = denoising_error(estimates, true, batch.lengths, batch.contexts)
        return error * batch.scale

    def zeros(self, num: int, device: torch.device) -> NoisyBatch:
        """A batch of `num` pieces of full length, of zeros, without noise."""
        plain = super().zeros(num, device)
        levels = torch.zeros(plain.vectors.shape[:2], dtype=torch.int64, device=device)
        return self.noisy(plain, levels, levels > 0, plain.vectors)

    def blocks(self) -> tuple[type[nn.Module], ...]:
        """fsdp2 gathers the weights of a layer at a time."""
        return (Layer, DenoiserLayer)
