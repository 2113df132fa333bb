"""Small networks for the checks of a GPU."""

from collections.abc import Iterator

import pytest

from pipeline.bench.gpu_check import inputs, sampling, training

BATCH = 6


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A network, batches and numbers of images that a CPU computes in seconds."""
    words = (*training.SMALL, f"train.batch={BATCH}", f"runtime.micro_batch={BATCH}")
    monkeypatch.setattr(training, "SMALL", words)
    monkeypatch.setattr(inputs, "TINY", (*inputs.TINY, *words))
    monkeypatch.setattr(training, "BATCH", BATCH)
    monkeypatch.setattr(sampling, "NUM", 16)
    monkeypatch.setattr(sampling, "FEW", 4)
    monkeypatch.setattr(sampling, "STEPS", 4)
    training.plain_losses.cache_clear()
    yield
    training.plain_losses.cache_clear()
