"""What is kept of streamed features: against direct computations, for any number of ranks."""

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.compute.distributed import Ranks
from pipeline.scoring.extractors import Extractor
from pipeline.scoring.fidelity import load_torch_fidelity
from pipeline.scoring.keepers import (
    Batch,
    ClassMeans,
    Held,
    Hits,
    InceptionScore,
    Moments,
    Only,
    batches,
    stream,
)
from pipeline.scoring.neighbours import Nearest

CPU = torch.device("cpu")
WIDTH, LOGITS = 6, 5


class Small(torch.nn.Module):
    """A stand-in for a network: fixed random features and logits of uint8 (B,3,H,W)."""

    def __init__(self, pixels: int) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.weight = torch.randn(3 * pixels, WIDTH + LOGITS, generator=draw)
        self.weight /= 100 * (3 * pixels) ** 0.5  # most pixels are below 256: tanh bends, a bit

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        actual = torch.tanh(images.flatten(1).float() @ self.weight)
        return actual[:, :WIDTH] * 5, actual[:, WIDTH:] * 3


def small_extractor(size: int) -> Extractor:
    """An extractor of WIDTH features and LOGITS logits for images of `size` px."""
    network = Small(size * size)
    return Extractor("small", "small", "Small", "0" * 64, True, True, WIDTH, network, CPU)


class Thread(Ranks):
    """A rank that is a thread of this process; the ranks exchange through `desk`."""

    desk: Any

    def _exchange(self, value: Tensor) -> list[Tensor]:
        self.desk.values[self.rank] = value
        self.desk.barrier.wait()
        values = list(self.desk.values)
        self.desk.barrier.wait()
        return values

    def barrier(self) -> None:
        self.desk.barrier.wait()

    def sum(self, value: Tensor) -> Tensor:
        return torch.stack(self._exchange(value)).sum(0)

    def gather(self, value: Tensor) -> list[Tensor]:
        values = self._exchange(value)
        return values if self.first else []


def on_ranks(world: int, work: Callable[[Ranks], Any]) -> Any:
    """What `work` returns on rank 0 of `world` threads."""
    desk = SimpleNamespace(values=[None] * world, barrier=threading.Barrier(world, timeout=600))
    results: list[Any] = [None] * world

    def run(rank: int) -> None:
        group = Thread(rank, world, CPU)
        object.__setattr__(group, "desk", desk)
        results[rank] = work(group)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results[0]


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 2**32 - 1),
    num=st.integers(12, 60),
    size=st.integers(1, 20),
    world=st.integers(1, 4),
)
def test_all_keepers_equal_a_direct_computation(seed: int, num: int, size: int, world: int) -> None:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (num, 4, 4, 3), np.uint8)
    labels = np.concatenate([np.arange(3), rng.integers(0, 3, num - 3)])
    wanted, means = rng.random(num) < 0.4, torch.from_numpy(rng.normal(size=(3, WIDTH)))
    extractor = small_extractor(4)
    # by the same batches, since a float32 product may round otherwise in a larger one
    parts = [extractor.features(images[k : k + size]) for k in range(0, num, size)]
    features, logits = (torch.cat(list(some)) for some in zip(*parts, strict=True))
    runtime: Any = SimpleNamespace(feature_batch=size, progress_seconds=1e9)

    def work(group: Ranks) -> list[Any]:
        keepers: list[Any] = [
            Moments(WIDTH),
            Only(wanted, some := Moments(WIDTH)),
            Held(wanted, WIDTH),
            ClassMeans(labels, 3, WIDTH, CPU),
            Hits(labels, means),
            InceptionScore(num, LOGITS, 3, 7, CPU),
            Nearest(features[:2], 4),
        ]
        rows = np.arange(num)
        stream(extractor.of(lambda r: images[r]), runtime, group, "x", rows, keepers)
        keepers[1] = some
        return keepers

    exact = features.double().numpy()
    total, some, held, classes, hits, inception, nearest = on_ranks(world, work)
    for moments, x in ((total, exact), (some, exact[wanted])):
        assert moments.num == len(x)
        if len(x) > 1:
            np.testing.assert_allclose(moments.mu, x.mean(0), rtol=1e-10, atol=1e-12)
            np.testing.assert_allclose(moments.sigma, np.cov(x.T), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(held.features, features[torch.from_numpy(wanted)])
    by_class = [exact[labels == k].mean(0) for k in range(3)]
    np.testing.assert_allclose(classes.means, by_class, rtol=1e-10, atol=1e-12)
    distances = ((exact[:, None] - means.numpy()) ** 2).sum(2)
    right = distances.argmin(1) == labels
    assert hits.shares().overall == pytest.approx(right.mean())
    assert hits.shares().per_class == pytest.approx([right[labels == k].mean() for k in range(3)])
    wish = load_torch_fidelity().metric_isc.isc_features_to_metric(logits, 3, True, 7)
    assert inception.score() == pytest.approx(tuple(wish.values()), rel=1e-9, abs=1e-12)
    lengths = np.sqrt(((exact[:2, None] - exact) ** 2).sum(2))
    order = np.argsort(lengths, axis=1, kind="stable")[:, :4]
    np.testing.assert_array_equal(nearest.rows, order)
    np.testing.assert_allclose(nearest.distances, np.sort(lengths, 1)[:, :4], atol=1e-9)


def test_class_accuracy_by_hand() -> None:
    group = Ranks(0, 1, CPU)
    real = torch.tensor([[0.0, 0], [2, 0], [10, 0], [12, 0], [0, 30.0]])
    classes = ClassMeans(np.array([0, 0, 1, 1, 2]), 3, 2, CPU)  # means (1,0), (11,0), (0,30)
    classes.add(Batch(np.arange(5), real, None))
    classes.finish(group)
    hits = Hits(np.array([0, 0, 1, 1]), classes.means)
    features = torch.tensor([[5.0, 0], [7, 0], [11, 1], [0, 29]])
    hits.add(Batch(np.arange(4), features, None))
    hits.finish(group)
    assert hits.shares().to_json() == {"overall": 0.5, "per_class": [0.5, 0.5, None]}


@settings(deadline=None, max_examples=60)
@given(num=st.integers(0, 50), size=st.integers(1, 20), world=st.integers(1, 5))
def test_batches_are_shared_out_once_and_the_same_for_all_worlds(
    num: int, size: int, world: int
) -> None:
    def slices(rank: int, world: int) -> list[slice]:
        return list(batches(num, size, "x", 1e9, Ranks(rank, world, CPU)))

    shared = [part for rank in range(world) for part in slices(rank, world)]
    assert sorted(shared, key=lambda part: part.start) == slices(0, 1)


def test_progress_counts_the_images_of_all_ranks(capsys: pytest.CaptureFixture[str]) -> None:
    for rank in (1, 0):
        list(batches(10, 2, "real", 0, Ranks(rank, 2, CPU)))
    lines = capsys.readouterr().out.splitlines()
    counts = [line.split(" images")[0] for line in lines]
    assert counts == ["real: 4 of 10", "real: 8 of 10", "real: 10 of 10"]
