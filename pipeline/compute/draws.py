"""Random numbers that are a pure function of (seed, stream, index): Philox4x32-10 in torch.

Image `index` of a stream gets the same numbers on any device, in any batch and on any rank, since
nothing is drawn in sequence: the counter of the generator is (block, index, stream), its key the
seed (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"). The 32-bit integers are
exact everywhere; uniforms and normals are made of them in float32, so two devices agree to the
rounding of log, cos and sin. Cost: about a hundred elementwise int64 operations per four numbers,
below a percent of a training step of the reference network.
"""

import hashlib
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

# Streams: the uses of random numbers.
ORDER, FLIP, TIME, TRAIN_NOISE, LABEL_DROPOUT, SAMPLE_NOISE, SAMPLE_CLASS, DROPOUT = range(8)
SAMPLE_TOKENS, HELD_OUT, DUALS, DUALS_CHECK = range(8, 12)

# Constants of Philox
_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


def torch_seed(seed: int) -> int:
    """Seed of torch's generators for a run's `seed` in [0, 2^63): the one on the CPU takes 32 bits.

    Seeds below 2^32 are taken as they are; of larger ones all bits go into a hash of 32 bits.
    """
    if seed <= _MASK:
        return seed
    return int.from_bytes(hashlib.sha256(seed.to_bytes(8, "little")).digest()[:4], "little")


def philox(counter: tuple[Tensor, ...], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Philox4x32-10 of four int64 tensors that hold 32-bit words, and a key of two 32-bit words.

    Returns four int64 tensors of the same shape that hold 32-bit words. A product of two words
    wraps in int64, which keeps its 64 bits; the mask after the shift drops the copied sign.
    """
    # Ten rounds of it
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((p1 >> 32) & _MASK) ^ c1 ^ k0,
            p1 & _MASK,
            ((p0 >> 32) & _MASK) ^ c3 ^ k1,
            p0 & _MASK,
        )
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def words(seed: int, stream: int, index: Tensor, count: int, turn: int = 0) -> Tensor:
    """(B, 4, ceil(count/4)) int64: 32-bit words for each of the B int64 indices.

    Further ones of the same indices are those of another `turn`, with the same count. Raises
    ValueError if there are none left: (turn + 1) ceil(count/4) must not be above 2^32.
    """
    num_blocks = (count + 3) // 4
    if (turn + 1) * num_blocks > _MASK + 1:
        raise ValueError(f"turn {turn} of {count} words lies beyond the 2^32 blocks of an index")
    blocks = torch.arange(turn * num_blocks, (turn + 1) * num_blocks, device=index.device)
    rows = index.unsqueeze(1)
    counter = torch.broadcast_tensors(
        blocks, rows & _MASK, (rows >> 32) & _MASK, torch.full_like(blocks, stream)
    )
    return torch.stack(philox(counter, (seed & _MASK, (seed >> 32) & _MASK)), dim=1)


def _unit(word: Tensor) -> Tensor:
    """Float32 uniforms in (0, 1): the middle of one of 2^23 equal cells, so never 0 or 1."""
    return ((word >> 9).to(torch.float32) + 0.5) * 2.0**-23


def uniform(seed: int, stream: int, index: Tensor) -> Tensor:
    """(B,) float32 uniforms in (0, 1), one per index (int64, not negative)."""
    return _unit(words(seed, stream, index, 1)[:, 0, 0])


def uniforms(seed: int, stream: int, index: Tensor, shape: tuple[int, ...]) -> Tensor:
    """(B, *shape) float32 uniforms in (0, 1) for each index (int64, not negative)."""
    count = math.prod(shape)
    unit = _unit(words(seed, stream, index, count))
    return unit.flatten(1)[:, :count].reshape(len(index), *shape)


def double_uniforms(
    seed: int, stream: int, index: Tensor, shape: tuple[int, ...], turn: int
) -> tuple[Tensor, Tensor]:
    """Two (B, *shape) float64 uniforms in (0, 1) for each index and turn: of 2^52 equal cells.

    A place has a block of four words to itself, two for each uniform.
    """
    word = words(seed, stream, index, 4 * math.prod(shape), turn)
    high, low = word[:, 0::2], word[:, 1::2] >> 12
    unit = (((high << 20) | low).to(torch.float64) + 0.5) * 2.0**-52
    first, second = unit.reshape(len(index), 2, *shape).unbind(1)
    return first, second


def pairs(seed: int, stream: int, index: Tensor) -> Tensor:
    """(B, 2) int32: two random 32-bit words for each index (int64), as signed integers."""
    return words(seed, stream, index, 1)[:, :2, 0].to(torch.int32)


def category(seed: int, stream: int, index: np.ndarray, counts: Sequence[int]) -> np.ndarray:
    """(B,) int64: for each index (int64) a category, drawn as often as `counts` are large.

    The inverse of the cumulative distribution at `uniform`, on the CPU and in float64, where sums
    of counts are exact: a category of count 0 never comes. Shares are exact to 2^-23.
    """
    edges = np.cumsum(counts)
    share = uniform(seed, stream, torch.from_numpy(index)).numpy().astype(np.float64)
    return np.searchsorted(edges, share * edges[-1], side="right").astype(np.int64)


def normal(seed: int, stream: int, index: Tensor, shape: tuple[int, ...]) -> Tensor:
    """(B, *shape) float32 standard normals, by Box and Muller (1958) of pairs of words."""
    count = math.prod(shape)
    word = words(seed, stream, index, count)
    radius = torch.sqrt(-2.0 * torch.log(_unit(word[:, :2])))
    angle = (2.0 * math.pi) * _unit(word[:, 2:])
    pairs = torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)], dim=1)
    return pairs.flatten(1)[:, :count].reshape(len(index), *shape)
