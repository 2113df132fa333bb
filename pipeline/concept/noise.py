"""Noise levels of a diffusion over sentence vectors, and the steps back from noise (DDIM).

Level i of N adds noise to x: x_i = signal_i x + noise_i e, with signal^2 + noise^2 = 1. The signal
falls by the cosine schedule (Nichol & Dhariwal 2021, eq. 17), stretched so that the last level is
noise alone (Lin et al. 2024, "Common diffusion noise schedules and sample steps are flawed",
algorithm 1).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

OFFSET = 0.008  # of the cosine: a little noise at the first level
MOST_BETA = 0.999  # of a level's own noise, before the stretch


def signals(num_levels: int) -> Tensor:
    """The signal (N,) float64 of each level, falling to 0."""
    times = torch.arange(num_levels + 1, dtype=torch.float64) / num_levels
    squares = torch.cos((times + OFFSET) / (1 + OFFSET) * math.pi / 2).square()
    betas = (1 - squares[1:] / squares[:-1]).clamp(max=MOST_BETA)
    signal = (1 - betas).cumprod(0).sqrt()
    return (signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])


def noise_of(signal: Tensor) -> Tensor:
    """The noise that belongs to a signal."""
    return (1 - signal.square()).sqrt()


def trailing(num_levels: int, num_steps: int) -> list[int]:
    """The levels of `num_steps` steps, evenly spaced from the last one on (Lin et al., table 2)."""
    spacing = num_levels / num_steps
    return [round(num_levels - k * spacing) - 1 for k in range(num_steps)]


Denoise = Callable[[Tensor, int, bool], Tensor]


def ddim(
    denoise: Denoise,
    start: Tensor,
    num_levels: int,
    num_steps: int,
    guidance: float,
    rescale: float,
) -> Tensor:
    """Vectors (…,D) float32 out of noise `start`, by DDIM (Song et al. 2021, eq. 12 without noise).

    `denoise(x, level, is_alone)` estimates the vectors without noise, with the context or without.
    The noises of both are guided (Ho & Salimans 2022) with the weight `guidance`, and the
    share `rescale` of the result gets the standard deviation of the one with the context, vector by
    vector (Lin et al. 2024, eq. 15 and 16). At the last level all is noise, which is not guided.
    """
    signal = signals(num_levels)
    shares = list(zip(signal.tolist(), noise_of(signal).tolist(), strict=True))
    levels = trailing(num_levels, num_steps)
    x = start
    for level, following in zip(levels, [*levels[1:], None], strict=True):
        a, b = shares[level]
        estimate = denoise(x, level, False)
        noise = (x - a * estimate) / b
        if a > 0 and guidance != 1:
            without = (x - a * denoise(x, level, True)) / b
            noise = guided(noise, without, guidance, rescale)
            estimate = (x - b * noise) / a
        if following is None:
            return estimate
        a, b = shares[following]
        x = a * estimate + b * noise
    return x


def guided(with_context: Tensor, without: Tensor, guidance: float, rescale: float) -> Tensor:
    """The noise (…,D) that is guided: see `ddim`."""
    noise = without + guidance * (with_context - without)
    spread = with_context.std(-1, keepdim=True) / noise.std(-1, keepdim=True)
    return noise * (rescale * spread + (1 - rescale))
