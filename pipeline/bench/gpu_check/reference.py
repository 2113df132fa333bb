"""Random numbers once more, in numpy's unsigned integers and float64: what devices are held to.

Nothing of pipeline/compute/draws.py is used, so that an error there, or in a device's integers,
cannot hide in both.
"""

import numpy as np

# Streams by their use; a checkpoint of last year draws by these numbers.
ORDER, FLIP, TIME, TRAIN_NOISE, LABEL_DROPOUT, SAMPLE_NOISE, SAMPLE_CLASS, DROPOUT = range(8)

WORD = np.uint64(0xFFFFFFFF)
HALF_WORD = np.uint64(32)


def words(seed: int, stream: int, index: np.ndarray, count: int) -> np.ndarray:
    """(B,4,ceil(count/4)) uint64 below 2^32: Philox4x32-10 (Salmon et al. 2011) of each index."""
    blocks = np.arange(-(-count // 4), dtype=np.uint64)[None]
    rows = index.astype(np.uint64)[:, None]
    c = np.broadcast_arrays(blocks, rows & WORD, rows >> HALF_WORD, np.uint64(stream))
    key = [np.uint64(seed & 0xFFFFFFFF), np.uint64(seed >> 32 & 0xFFFFFFFF)]
    for _ in range(10):
        first, second = np.uint64(0xD2511F53) * c[0], np.uint64(0xCD9E8D57) * c[2]
        high, other = second >> HALF_WORD, first >> HALF_WORD
        c = (high ^ c[1] ^ key[0], second & WORD, other ^ c[3] ^ key[1], first & WORD)
        key = [key[0] + np.uint64(0x9E3779B9) & WORD, key[1] + np.uint64(0xBB67AE85) & WORD]
    return np.stack(c, axis=1)


def unit(word: np.ndarray) -> np.ndarray:
    """Float64 in (0,1): the middle of one of 2^23 cells, which float32 holds exactly."""
    return ((word >> np.uint64(9)).astype(np.float64) + 0.5) / 2**23


def uniform(seed: int, stream: int, index: np.ndarray) -> np.ndarray:
    """(B,) float64, exact in float32."""
    return unit(words(seed, stream, index, 1)[:, 0, 0])


def normal(seed: int, stream: int, index: np.ndarray, count: int) -> np.ndarray:
    """(B,count) float64 standard normals by Box and Muller."""
    word = unit(words(seed, stream, index, count))
    radius, angle = np.sqrt(-2 * np.log(word[:, :2])), 2 * np.pi * word[:, 2:]
    pairs = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return pairs.reshape(len(index), -1)[:, :count]


def mixed(word: np.ndarray) -> np.ndarray:
    """lowbias32 (Wellons 2018) of uint32."""
    word = (word ^ word >> np.uint32(16)) * np.uint32(0x7FEB352D)
    word = (word ^ word >> np.uint32(15)) * np.uint32(0x846CA68B)
    return word ^ word >> np.uint32(16)


def dropout_hashes(keys: np.ndarray, layer: int, shape: tuple[int, int, int]) -> np.ndarray:
    """(B,C,H,W) uint32 below 2^31 of words keys (B,2) uint32: places are counted channels last."""
    channels, height, width = shape
    places = np.arange(channels * height * width, dtype=np.uint32).reshape(height, width, channels)
    offset = np.uint32(layer * 0x9E3779B9 & 0xFFFFFFFF)
    of_layer = mixed(keys[:, 0] + offset) ^ keys[:, 1]
    hashes = mixed(places.transpose(2, 0, 1)[None] ^ of_layer[:, None, None, None])
    return hashes & np.uint32(0x7FFFFFFF)


def times(kind: str, uniforms: np.ndarray) -> np.ndarray:
    """(B,) float64 times of uniform draws: of each published distribution."""
    from scipy.special import ndtri

    if kind == "uniform":
        return uniforms
    if kind == "logit_normal":  # Esser et al. 2024, location 0, scale 1
        return 1 / (1 + np.exp(-ndtri(uniforms)))
    sigma = np.exp(-1.2 + 1.2 * ndtri(uniforms))  # Karras et al. 2022
    return np.clip(1 / (1 + sigma), 1e-4, 1.0)
