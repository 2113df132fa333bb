"""How much a part measures, and on what: as promised on a GPU, or as little as a test wants."""

import time
from dataclasses import dataclass, field

import torch

from pipeline.bench.train import GPU_WORDS


class Unavailable(Exception):
    """A part cannot be measured here; the message says what is missing."""


@dataclass(frozen=True)
class Scale:
    """Device, experiment and numbers of a part."""

    # On what
    device: torch.device
    words: tuple[str, ...] = GPU_WORDS  # of the configuration
    # How much
    largest: int = 512  # images a pass at most
    rounds: int = 5
    steps: int = 5  # training steps of a round
    images: int = 64  # sampled at once
    files: int = 64_000  # packed
    # How long
    seconds: float = 400.0  # from the start of the part, after which no case begins
    began: float = field(default_factory=time.monotonic)

    def in_time(self) -> bool:
        """Whether another case may begin."""
        return time.monotonic() - self.began < self.seconds

    def halvings(self) -> list[int]:
        """Numbers of images a pass: `largest`, half of it, and so on to 1."""
        return [self.largest >> k for k in range(self.largest.bit_length())]
