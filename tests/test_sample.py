"""Sampling: an image depends on its index alone; interrupted runs go on."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import checkpoint, locks, sample
from pipeline.config import stage_keys
from pipeline.errors import UserError
from pipeline.unet import UNet
from tests.conftest import ROOT, resolved

TINY = ["experiment=tiny", "sample.num=24", "runtime.progress_seconds=1000"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network with random weights everywhere, as a training run would leave it."""
    config = resolved("experiment=tiny")
    torch.manual_seed(0)
    net = UNet(config.model, 10)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    torch.nn.init.normal_(net.label_embedding.weight, std=2.0)  # the class matters
    about = {
        "config": stage_keys(config, "train"),
        "record": {"resolution": 8, "classes": [f"class{k}" for k in range(10)]},
        "images": 1,
        "gpu_hours": 0.0,
        "torch": torch.__version__,
    }
    path = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    checkpoint.save_weights(path, net.state_dict(), about)
    return path


def run(weights: Path, out: Path, *more: str) -> tuple[np.ndarray, dict]:
    sample.main([*TINY, f"weights={weights}", f"out={out}", *more])
    return np.load(out / "images.npy"), json.loads((out / "sample.json").read_text())


@pytest.mark.parametrize("batch", [1, 7])
def test_the_batch_size_changes_nothing(weights: Path, tmp_path: Path, batch: int) -> None:
    whole, _ = run(weights, tmp_path / "a")
    parts, _ = run(weights, tmp_path / "b", f"runtime.sample_batch={batch}")
    levels = np.abs(whole.astype(int) - parts.astype(int))
    assert levels.max() <= 1 and (levels == 0).mean() >= 0.999


def test_the_number_of_ranks_changes_nothing(weights: Path, tmp_path: Path) -> None:
    whole, _ = run(weights, tmp_path / "a", "runtime.sample_batch=5")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node=2", "-m", "pipeline.sample", *TINY, "runtime.sample_batch=5"]
    command += [f"weights={weights}", f"out={tmp_path / 'b'}"]
    subprocess.run(command, cwd=ROOT, check=True, timeout=200, capture_output=True)
    assert np.array_equal(whole, np.load(tmp_path / "b" / "images.npy"))
    assert json.loads((tmp_path / "b" / "sample.json").read_text())["world_size"] == 2


def test_seeds_differ_and_classes_are_balanced(weights: Path, tmp_path: Path) -> None:
    first, _ = run(weights, tmp_path / "a", "seed=0")
    second, about = run(weights, tmp_path / "b", "seed=1")
    assert (first != second).mean() > 0.5 and about["seed"] == 1
    assert np.load(tmp_path / "a" / "labels.npy").tolist() == [k % 10 for k in range(24)]


@pytest.mark.parametrize(
    ("words", "evaluations"),
    [
        (["sample.solver=euler", "sample.guidance=1"], 4),
        (["sample.solver=euler", "sample.guidance=1.5"], 8),
        (["sample.solver=midpoint", "sample.guidance=1"], 8),
        (["sample.solver=heun", "sample.guidance=1.5"], 16),
    ],
)
def test_evaluations_are_counted(
    weights: Path, tmp_path: Path, words: list[str], evaluations: int
) -> None:
    _, about = run(weights, tmp_path, *words)
    assert about["nfe_mean"] == about["nfe_max"] == evaluations


def test_solvers_agree_where_steps_are_many(weights: Path, tmp_path: Path) -> None:
    exact, about = run(weights, tmp_path / "d", "sample.solver=dopri5")
    assert about["nfe_max"] >= about["nfe_mean"] > 10
    for solver in ("midpoint", "heun"):
        fine, _ = run(weights, tmp_path / solver, f"sample.solver={solver}", "sample.steps=60")
        assert np.abs(exact.astype(int) - fine.astype(int)).max() <= 1


def test_guidance_moves_the_samples(weights: Path, tmp_path: Path) -> None:
    plain, _ = run(weights, tmp_path / "a", "sample.guidance=1")
    strong, _ = run(weights, tmp_path / "b", "sample.guidance=3")
    assert (plain != strong).mean() > 0.2


def test_finished_batches_are_kept(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = run(weights, tmp_path / "a", "runtime.sample_batch=5")
    calls: list[int] = []
    real = sample.sample_images

    def fails_at_the_third(*arguments: object) -> object:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(sample, "sample_images", fails_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        run(weights, tmp_path / "b", "runtime.sample_batch=5")
    assert not (tmp_path / "b" / "images.npy").exists()
    resumed, _ = run(weights, tmp_path / "b", "runtime.sample_batch=5")
    assert len(calls) == 3 + 3  # five batches: two kept, three made
    assert np.array_equal(whole, resumed)
    assert not (tmp_path / "b" / "shards").exists()


def test_a_second_sampler_waits_or_is_refused(weights: Path, tmp_path: Path) -> None:
    with locks.locked(tmp_path), pytest.raises(UserError, match="is in use by process"):
        run(weights, tmp_path)


def test_missing_weights_get_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run `make train`"):
        sample.preflight([*TINY, f"weights={tmp_path / 'none'}"], 1)
    with pytest.raises(UserError, match="seed=x is not a whole number"):
        sample.prepare([*TINY, "seed=x", f"weights={tmp_path / 'none'}"])
