"""Dropout whose masks follow the image, not the process.

An image has two random words (`draws.pairs`), a layer its number. Each value of the layer is
kept or dropped by a hash of (words, number of the layer, place of the value), so that the masks are
the same on any device, in any micro-batch and on any rank. The hash is lowbias32 of Chris Wellons
(Hash Prospector, 2018), in int32, which wraps: about ten elementwise operations, which compile to
one kernel.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

GOLDEN = 0x9E3779B9  # the golden ratio's fraction in 32 bits
FACTORS = (0x7FEB352D, 0x846CA68B - (1 << 32))  # lowbias32's, as int32
BITS = 31  # of the hash that are compared: those of a positive int32


class Dropout(nn.Module):
    """Sets a share of the values to 0 in training and scales the others up, so the mean stays.

    `number` tells the layers of a network apart; `numbered` sets it.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share
        self.number = 0

    def forward(self, x: Tensor, keys: Tensor | None) -> Tensor:
        """(B,C,H,W) -> the same shape; `keys` (B,2) int32 are the images' random words.

        Without keys the masks come from torch's generator.
        """
        if not self.training or self.share == 0:
            return x
        if keys is None:
            return F.dropout(x, self.share)
        mask = hashes(keys, self.number, x.shape[1:]) >= round(self.share * 2**BITS)
        return torch.where(mask, x / (1 - self.share), 0.0)


def numbered(network: nn.Module) -> None:
    """Give the layers of dropout of a network their numbers, in the order of its modules."""
    layers = (module for module in network.modules() if isinstance(module, Dropout))
    for number, layer in enumerate(layers):
        layer.number = number


def hashes(keys: Tensor, number: int, shape: torch.Size) -> Tensor:
    """(B, *shape) int32 in [0, 2^31) of shape (C,H,W): a hash of keys (B,2), layer and place.

    Places are counted with the channels last, as GPUs hold them in memory.
    """
    channels, height, width = shape
    places = torch.arange(shape.numel(), dtype=torch.int32, device=keys.device)
    places = places.view(height, width, channels).permute(2, 0, 1)
    offset = (number * GOLDEN + 2**31) % 2**32 - 2**31  # as int32
    layer = mixed(keys[:, 0] + offset) ^ keys[:, 1]
    return mixed(places ^ layer[:, None, None, None]) & (2**BITS - 1)


def mixed(word: Tensor) -> Tensor:
    """lowbias32 of int32 words: every bit of the result depends on all bits."""
    word = (word ^ shifted(word, 16)) * FACTORS[0]
    word = (word ^ shifted(word, 15)) * FACTORS[1]
    return word ^ shifted(word, 16)


def shifted(word: Tensor, count: int) -> Tensor:
    """int32 words moved right by `count` bits, with zeros coming in as in unsigned ones."""
    return (word >> count) & ((1 << (32 - count)) - 1)
