"""Samples do not know how many ranks and which batches they were made in.

Another batch size is another rounding in the network's sums, about 1e-6. A fixed grid carries that
to at most one grey level if a value lies at the border of two. dopri5 may also accept a step that
it rejected before; then two solutions differ by as much as each may be away from the exact one.
That is at most 3 tolerances in tests/sampling/test_solvers.py, so 6e-5 of the range [-1, 1] at
1e-5, or 0.0077 grey levels: values differ by one level at most, and no more than 0.77 % of them do.

Started by torchrun, this module is a rank that samples with all samplers and batch sizes.
"""

import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from pipeline import sample
from pipeline.compute.distributed import ranks
from pipeline.sampling import loop
from tests.conftest import ROOT
from tests.random_networks import save_network

EQUAL = {"heun": 0.999, "dopri5": 1 - 0.0077}  # share of values, at least
GUIDANCE = {"heun": 2, "dopri5": 1}
BATCHES = (1, 7, 64)


def sample_all(weights: Path, out: Path, batches: tuple[int, ...], *words: str) -> None:
    """Sample into out/<solver>-<batch>, on the ranks of this process."""
    fixed = ["experiment=tiny", "sample.num=9", "runtime.device=cpu", f"weights={weights}", *words]
    for solver in EQUAL:
        for batch in batches:
            keys = [f"sample.solver={solver}", f"sample.guidance={GUIDANCE[solver]}"]
            keys.append(f"runtime.sample_batch={batch}")
            sample.main([*fixed, *keys, f"out={out / f'{solver}-{batch}'}"])


def on_ranks(world: int, weights: Path, out: Path, *words: str) -> None:
    """The same on `world` ranks."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={world}", "-m", "tests.sampling.test_sample_ranks"]
    command += [str(weights), str(out), *words]
    subprocess.run(command, cwd=ROOT, check=True, timeout=580, capture_output=True)


def check_equal(one: Path, other: Path, solver: str) -> None:
    """Images within a grey level, and as many equal values as EQUAL says."""
    levels = np.abs(np.load(one).astype(int) - np.load(other).astype(int))
    assert levels.max() <= 1 and (levels == 0).mean() >= EQUAL[solver]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Samples of one process, and the weights."""
    root = tmp_path_factory.mktemp("ranks")
    sample_all(save_network(root / "weights.safetensors"), root / "1", BATCHES)
    return root


@pytest.mark.parametrize("solver", EQUAL)
@pytest.mark.parametrize("batch", BATCHES[:-1])
def test_batch_sizes(root: Path, solver: str, batch: int) -> None:
    whole, parts = (root / "1" / f"{solver}-{b}/images.npy" for b in (BATCHES[-1], batch))
    check_equal(whole, parts, solver)


@pytest.mark.parametrize("world", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_numbers_of_ranks(root: Path, world: int) -> None:
    on_ranks(world, root / "weights.safetensors", root / str(world))
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
def test_many_samples(tmp_path: Path) -> None:
    words = ("sample.num=600", "sample.classes=histogram")
    weights = save_network(tmp_path / "small.safetensors", channel_mult=[1], attention_at=[])
    on_ranks(2, weights, tmp_path / "2", *words, "batches=50")
    on_ranks(3, weights, tmp_path / "3", *words, "batches=64")
    for solver in EQUAL:
        two, three = (tmp_path / "2" / f"{solver}-50", tmp_path / "3" / f"{solver}-64")
        check_equal(two / "images.npy", three / "images.npy", solver)
        assert (two / "labels.npy").read_bytes() == (three / "labels.npy").read_bytes()


if __name__ == "__main__":
    chosen = [word for word in sys.argv[3:] if not word.startswith("batches=")]
    sizes = [int(word.removeprefix("batches=")) for word in sys.argv[3:] if word not in chosen]
    with ranks("cpu", {}, 60) as group:  # once: a store keeps the addresses of a first group
        loop.ranks = lambda *_: nullcontext(group)
        sample_all(Path(sys.argv[1]), Path(sys.argv[2]), tuple(sizes) or BATCHES, *chosen)
