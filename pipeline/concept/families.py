"""The networks on sentence vectors by their keys, and what each predicts."""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from pipeline.compute import draws
from pipeline.concept.network import LCM, Decoder
from pipeline.concept.noise import ddim
from pipeline.concept.normaliser import Normaliser
from pipeline.concept.two_tower import TwoTower
from pipeline.config.concept_keys import Concept
from pipeline.config.model_keys import DecoderKeys, LCMKeys, TwoTowerKeys

# Raw vectors (B,T,D) float32 and their rows (B,T) int64 in the pack -> predictions (B,T,D),
# normalised: that at t is of the vector at t+1.
Predictor = Callable[[Tensor, Tensor], Tensor]


def network(keys: DecoderKeys, normaliser: Normaliser, max_sentences: int) -> Decoder:
    """The network with these keys, with new weights."""
    if isinstance(keys, TwoTowerKeys):
        return TwoTower(keys, normaliser, max_sentences)
    assert isinstance(keys, LCMKeys)
    return LCM(keys, normaliser, max_sentences)


def predictor(keys: DecoderKeys, net: nn.Module, concept: Concept) -> Predictor:
    """The predictions of a network, which may be compiled."""
    if isinstance(keys, TwoTowerKeys):
        towers = cast(TwoTower, net)
        return lambda vectors, rows: denoised(keys, towers, concept, vectors, rows)
    return lambda vectors, _: net(vectors)[0]


def denoised(
    keys: TwoTowerKeys, net: TwoTower, concept: Concept, vectors: Tensor, rows: Tensor
) -> Tensor:
    """Predictions by denoising: see Predictor. The noise of a sentence follows from its row."""
    context = net.before(net.states(net.normalise(vectors), None))
    normals = draws.normal(
        concept.noise_seed, draws.SAMPLE_NOISE, rows.flatten(), vectors.shape[2:]
    )
    alone = torch.ones(rows.shape, dtype=torch.bool, device=rows.device)

    def denoise(x: Tensor, level: int, is_alone: bool) -> Tensor:
        levels = torch.full((1, 1), level, device=rows.device)  # all have the same
        return net.denoise(x, levels, context, alone if is_alone else ~alone)

    start = concept.initial_noise * normals.view(vectors.shape)
    found = ddim(
        denoise,
        start,
        keys.noise_levels,
        concept.denoising_steps,
        concept.guidance,
        concept.guidance_rescale,
    )
    return found.roll(-1, dims=1)
