"""Samples of a multistep solver do not know how many ranks and which batches they were made in."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import sample
from pipeline.compute.distributed import Ranks
from pipeline.sampling import network, shards
from pipeline.sampling.job import prepare
from tests.on_ranks import on_ranks
from tests.random_networks import save_network

WORDS = (
    *("experiment=tiny", "sample.num=9", "runtime.device=cpu", "sample.guidance=2"),
    *("sample.solver=ab3", "sample.steps=8", "sample.guidance_interval=[0.3,0.7]"),
)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"weights={save_network(tmp_path_factory.mktemp('net') / 'weights.safetensors')}"


def sampled(weights: str, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Images and their evaluations, batch after batch."""
    job = prepare([*WORDS, weights, f"runtime.sample_batch={batch}"])
    networks = network.build(job, Ranks(0, 1, torch.device("cpu")))
    starts = range(0, job.config.sample.num, batch)
    parts = [shards.sample_shard(job, networks, k, torch.device("cpu")) for k in starts]
    images, evaluations = zip(*parts, strict=True)
    return np.concatenate(images), np.concatenate(evaluations)


def test_batch_sizes(weights: str) -> None:
    whole, evaluations = sampled(weights, 9)
    # From 0, 3/8 and 6/8 on with a midpoint; guided at 3/8, 3.5/8, 4/8, 5/8
    assert evaluations.tolist() == [8 + 3 + 4] * 9
    for batch in (1, 4):
        images, counts = sampled(weights, batch)
        levels = np.abs(images.astype(int) - whole.astype(int))
        assert levels.max() <= 1 and (levels == 0).mean() >= 0.999
        assert np.array_equal(counts, evaluations)


@pytest.mark.slow
def test_two_ranks(weights: str, tmp_path: Path) -> None:
    words = [*WORDS, weights, "runtime.sample_batch=2"]
    on_ranks(2, "pipeline.sample", *words, f"out={tmp_path / '2'}")
    sample.main([*words, f"out={tmp_path / '1'}"])
    for made in ("images.npy", "labels.npy", "strip.png"):
        assert (tmp_path / "1" / made).read_bytes() == (tmp_path / "2" / made).read_bytes()
