"""Documents made from a seed, to try a training without any data: vectors that turn.

Each pair of dimensions turns by a separate angle from a sentence to the next, with noise. So the
next vector can be predicted from the last one, up to the noise. In a pair, the target turns back.
"""

from collections.abc import Iterator

import numpy as np

from pipeline.concept.spool import Document

DOCUMENTS = 600
SHORTEST, LONGEST = 2, 40  # sentences
LONGEST_PART = 12  # sentences of a prompt, and of a target
NOISE = 0.3  # standard deviation, beside vectors of 1
SEED = 0


def documents(dimension: int) -> Iterator[Document]:
    """Documents of vectors (n,D); an odd last dimension does not turn."""
    random, angles, scales = of_seed(dimension)
    for _ in range(DOCUMENTS):
        length = int(random.integers(SHORTEST, LONGEST + 1))
        turns = np.tile(angles, (length - 1, 1))
        yield Document(walk(random, turns, dimension) * scales, None)


def pairs(dimension: int) -> Iterator[Document]:
    """Pairs of vectors (n,D), of the same angles and scales: in the target all turn back."""
    random, angles, scales = of_seed(dimension)
    for _ in range(DOCUMENTS):
        prompt, target = (int(n) for n in random.integers(1, LONGEST_PART + 1, size=2))
        signs = np.where(np.arange(1, prompt + target) < prompt, 1, -1)
        yield Document(walk(random, signs[:, None] * angles, dimension) * scales, None, prompt)


def of_seed(dimension: int) -> tuple[np.random.Generator, np.ndarray, np.ndarray]:
    """The generator, the angles (D//2,) and the scales (D,) float32 of the dimensions."""
    random = np.random.default_rng(SEED)
    angles = random.uniform(0, np.pi, dimension // 2)
    scales = np.exp(random.normal(size=dimension))  # the normaliser has something to do
    return random, angles, scales.astype(np.float32)


def walk(random: np.random.Generator, angles: np.ndarray, dimension: int) -> np.ndarray:
    """Vectors (n+1,dimension) float32 that turn by `angles` (n,dimension//2) from one to the next.

    Each number is of standard deviation about 1.
    """
    keep, num_turning = np.sqrt(1 - NOISE**2), 2 * angles.shape[1]
    vectors = random.normal(size=(len(angles) + 1, dimension))
    for t, turn in enumerate(np.exp(1j * angles), start=1):
        before = vectors[t - 1, :num_turning].copy().view(complex)
        vectors[t] *= NOISE
        vectors[t, :num_turning] += keep * (before * turn).view(float)
    return vectors.astype(np.float32)
