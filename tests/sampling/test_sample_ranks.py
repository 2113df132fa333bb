"""Samples do not know how many ranks and which batches they were made in.

Another batch size is another rounding in the network's sums, about 1e-6. A fixed grid carries that
to at most one grey level if a value lies at the border of two. dopri5 may also accept a step that
it rejected before; then two solutions differ by as much as each may be away from the exact one.
That is at most 3 tolerances in tests/sampling/test_solvers.py, so 6e-5 of the range [-1, 1] at
1e-5, or 0.0077 grey levels: values differ by one level at most, and no more than 0.77 % of them do.

Started by `on_ranks`, this module is a rank that makes all samples.
"""

import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from pipeline import sample
from pipeline.compute.distributed import ranks
from pipeline.sampling import loop
from tests.on_ranks import on_ranks
from tests.random_networks import save_network

EQUAL = {"heun": 0.999, "dopri5": 1 - 0.0077}  # share of values, at least
GUIDANCE = {"heun": 2, "dopri5": 1}
BATCHES = (1, 5, 64)
MANY = ("sample.num=150", "sample.classes=histogram")  # each rank makes them in several batches
MANY_BATCH = {2: 20, 3: 16}  # by number of ranks


def sample_all(weights: Path, out: Path, batches: tuple[int, ...], *words: str) -> None:
    """Sample into out/<solver>-<batch>, on the ranks of this process."""
    fixed = ["experiment=tiny", "sample.num=8", "runtime.device=cpu", f"weights={weights}", *words]
    for solver in EQUAL:
        for batch in batches:
            keys = [f"sample.solver={solver}", f"sample.guidance={GUIDANCE[solver]}"]
            keys.append(f"runtime.sample_batch={batch}")
            sample.main([*fixed, *keys, f"out={out / f'{solver}-{batch}'}"])


def check_equal(one: Path, other: Path, solver: str) -> None:
    """Images within a grey level, and as many equal values as EQUAL says."""
    levels = np.abs(np.load(one).astype(int) - np.load(other).astype(int))
    assert levels.max() <= 1 and (levels == 0).mean() >= EQUAL[solver]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Samples of one process, and the weights, those of a small network too."""
    root = tmp_path_factory.mktemp("ranks")
    save_network(root / "small.safetensors", channel_mult=[1], attention_at=[])
    weights = save_network(root / "weights.safetensors", channel_mult=[1], attention_at=[8])
    sample_all(weights, root / "1", BATCHES)
    return root


@pytest.fixture(scope="module")
def two(root: Path) -> Path:
    """Samples of two ranks too."""
    on_ranks(2, "tests.sampling.test_sample_ranks", str(root))
    return root


@pytest.fixture(scope="module")
def three(two: Path) -> Path:
    """Samples of three ranks too."""
    on_ranks(3, "tests.sampling.test_sample_ranks", str(two))
    return two


@pytest.mark.slow
@pytest.mark.parametrize("solver", EQUAL)
@pytest.mark.parametrize("batch", BATCHES[:-1])
def test_batch_sizes(root: Path, solver: str, batch: int) -> None:
    whole, parts = (root / "1" / f"{solver}-{b}/images.npy" for b in (BATCHES[-1], batch))
    check_equal(whole, parts, solver)


@pytest.mark.slow
def test_two_ranks(two: Path) -> None:
    as_one_process(two, 2)


@pytest.mark.slow
def test_three_ranks(three: Path) -> None:
    as_one_process(three, 3)


def as_one_process(root: Path, world: int) -> None:
    for solver in EQUAL:
        for batch in BATCHES:
            name = f"{solver}-{batch}"
            check_equal(
                root / "1" / f"{solver}-64/images.npy",
                root / str(world) / f"{name}/images.npy",
                solver,
            )
            for made in ("images.npy", "labels.npy", "strip.png"):  # equal batches, equal bytes
                bytes_of = [(root / w / name / made).read_bytes() for w in ("1", str(world))]
                assert bytes_of[0] == bytes_of[1]


@pytest.mark.slow
def test_many_samples(three: Path) -> None:
    for solver in EQUAL:
        one, other = (three / f"many-{w}" / f"{solver}-{batch}" for w, batch in MANY_BATCH.items())
        check_equal(one / "images.npy", other / "images.npy", solver)
        assert (one / "labels.npy").read_bytes() == (other / "labels.npy").read_bytes()


if __name__ == "__main__":
    place = Path(sys.argv[1])
    with ranks("cpu", {}, 60) as group:  # once: a store keeps the addresses of a first group
        loop.ranks = lambda *_: nullcontext(group)
        sample_all(place / "weights.safetensors", place / str(group.world), BATCHES)
        out, batch = place / f"many-{group.world}", MANY_BATCH[group.world]
        sample_all(place / "small.safetensors", out, (batch,), *MANY)
