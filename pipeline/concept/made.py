"""Documents made from a seed, to try a training without any data: vectors that turn.

Each pair of dimensions turns by an angle of its own from a sentence to the next, with noise. So the
next vector can be predicted from the last one, up to the noise.
"""

from collections.abc import Iterator

import numpy as np

DOCUMENTS = 600
SHORTEST, LONGEST = 2, 40  # sentences
NOISE = 0.3  # standard deviation, beside vectors of 1
SEED = 0


def documents(dimension: int) -> Iterator[np.ndarray]:
    """Vectors (n,D) float32 of each document; an odd last dimension does not turn."""
    random = np.random.default_rng(SEED)
    angles = random.uniform(0, np.pi, dimension // 2)
    scales = np.exp(random.normal(size=dimension))  # the normaliser has something to do
    for _ in range(DOCUMENTS):
        length = int(random.integers(SHORTEST, LONGEST + 1))
        yield walk(random, angles, length, dimension) * scales.astype(np.float32)


def walk(
    random: np.random.Generator, angles: np.ndarray, length: int, dimension: int
) -> np.ndarray:
    """One document (length, dimension) float32, each number of standard deviation about 1."""
    keep, pairs = np.sqrt(1 - NOISE**2), 2 * len(angles)
    vectors = random.normal(size=(length, dimension))
    turn = np.exp(1j * angles)
    for t in range(1, length):
        before = vectors[t - 1, :pairs].copy().view(complex)
        vectors[t] *= NOISE
        vectors[t, :pairs] += keep * (before * turn).view(float)
    return vectors.astype(np.float32)
