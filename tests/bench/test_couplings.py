"""The comparison of couplings: what it trains, and what it makes of the networks."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pipeline.bench import couplings, steps
from tests.random_networks import save_network


def extractor() -> SimpleNamespace:
    """Features of images: some of their pixels."""

    def features(images: np.ndarray) -> tuple[torch.Tensor]:
        return (torch.from_numpy(images[:, :2, :2].reshape(len(images), -1)).double(),)

    return SimpleNamespace(features=features, device=torch.device("cpu"))


def test_each_coupling_is_trained_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[list[str]] = []
    monkeypatch.setattr(steps.subprocess, "run", lambda command, **_: ran.append(command))
    words = couplings.prepared(tmp_path)
    assert [command[2] for command in ran] == ["pipeline.downsample", "pipeline.coupling"]
    ran.clear()
    for name in couplings.COUPLINGS:
        couplings.trained(tmp_path, words, name, 7)
    sets = [set(command) for command in ran]
    common = set.intersection(*sets)
    assert all(len(one - common) == 2 for one in sets)  # the coupling and the folder
    assert {"train.seed=7", f"train.images={couplings.TRAINED}"} <= common


def test_evaluations_and_distances_of_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = save_network(tmp_path / "weights.safetensors", channel_mult=[1], attention_at=[])
    words = ["experiment=tiny", f"weights={weights}"]
    monkeypatch.setattr(couplings, "trained", lambda *_: words)
    monkeypatch.setattr(couplings, "real_features", lambda *_: torch.randn(9, 12).double() * 50)
    monkeypatch.setattr(couplings, "SAMPLED", 6)
    monkeypatch.setattr(couplings, "SEEDS", (0, 1))
    values, distances = couplings.compare(tmp_path, words, extractor())  # type: ignore[arg-type]
    assert list(values) == list(couplings.COUPLINGS) and list(distances) == list(couplings.STEPS)
    assert all(len(found) == 2 and found[0] == found[1] >= 7 for found in values.values())
    for by_name in distances.values():
        assert all(len(found) == 2 and min(found) > 0 for found in by_name.values())
    (first, *_, last) = couplings.notes(distances)
    assert first.startswith("distance by 4 Euler steps: independent ") and "16 Euler" in last
