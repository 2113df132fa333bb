"""Weights whole on every rank or in parts: the same losses, and checkpoints that cross."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.training import checkpoint, weights_file
from tests.on_ranks import train_on_ranks
from tests.test_train import difference, losses, outcome, run, words

# Two passes a step, and every gradient is clipped. The one of 3 output channels leaves 2 and 1 to
# two ranks.
KEYS = [
    "train.images=120",
    "train.clip_grad_norm=0.05",
    "train.ema_halflife_images=[50,200]",
    "runtime.micro_batch=3",
    "runtime.checkpoint_images=60",
    "runtime.keep_checkpoints=9",
]
FILES = ("weights.safetensors", "weights-ema200.safetensors")


def half_of(out: Path, copy: Path) -> Path:
    """A copy of a run as it was in its middle."""
    shutil.copytree(out, copy)
    steps = checkpoint.checkpoints(next(copy.glob("checkpoints/*")))
    for path in steps[len(steps) // 2 :]:
        path.unlink()
    return copy


def assert_same(one: Path, two: Path) -> None:
    np.testing.assert_allclose(losses(outcome(one)[1]), losses(outcome(two)[1]), rtol=1e-5)
    for name in FILES:
        weights = [weights_file.load_weights(out / name) for out in (one, two)]
        assert difference(*weights) < 1e-5


@pytest.fixture(scope="module")
def by_two(pack: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of two ranks by each strategy, and runs that go from one strategy to the other."""
    root, half = tmp_path_factory.mktemp("runs"), "train.images=60"
    ddp, fsdp2 = ([*KEYS, f"runtime.strategy={strategy}"] for strategy in ("ddp", "fsdp2"))
    output = train_on_ranks(
        2,
        words(pack, root / "ddp", *ddp),
        words(pack, root / "fsdp2", *fsdp2),
        words(pack, root / "from ddp", *ddp, half),
        words(pack, root / "from ddp", *fsdp2),
        words(pack, root / "from fsdp2", *fsdp2, half),
        words(pack, root / "from fsdp2", *ddp),
    )
    assert output.count("resuming from step 5 of 10") == 2, output
    return root


@pytest.fixture(scope="module")
def ddp(by_two: Path) -> Path:
    return by_two / "ddp"


@pytest.fixture(scope="module")
def fsdp2(by_two: Path) -> Path:
    return by_two / "fsdp2"


@pytest.mark.slow
def test_both_make_the_same_model(ddp: Path, fsdp2: Path) -> None:
    assert_same(ddp, fsdp2)
    norms = [[row["grad_norm"] for row in outcome(out)[1]] for out in (ddp, fsdp2)]
    np.testing.assert_allclose(*norms, rtol=1e-4)
    assert min(norms[0]) > 0.05


@pytest.mark.slow
def test_their_checkpoints_are_of_one_form(ddp: Path, fsdp2: Path) -> None:
    states = [checkpoint.load(next(out.glob("checkpoints/*/*10.pt"))) for out in (ddp, fsdp2)]
    one, two = ([s["net"], *s["averages"], *s["optimizer"]["state"].values()] for s in states)
    for a, b in zip(one, two, strict=True):
        assert list(a) == list(b)
        assert all(type(b[k]) is torch.Tensor and a[k].shape == b[k].shape for k in a)
    assert states[0]["optimizer"]["param_groups"] == states[1]["optimizer"]["param_groups"]


@pytest.mark.slow
def test_fsdp2_goes_on_from_ddp(ddp: Path, by_two: Path) -> None:
    assert_same(ddp, by_two / "from ddp")


@pytest.mark.slow
def test_one_process_goes_on_from_fsdp2(
    fsdp2: Path, pack: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = half_of(fsdp2, tmp_path / "run")
    run(pack, out, *KEYS, "runtime.strategy=fsdp2")  # which one process has no use for
    assert "resuming from step 5 of 10" in capsys.readouterr().out
    assert_same(fsdp2, out)


@pytest.mark.slow
def test_ddp_goes_on_from_fsdp2(fsdp2: Path, by_two: Path) -> None:
    assert_same(fsdp2, by_two / "from fsdp2")


@pytest.mark.slow
def test_three_ranks_that_go_on_add_gradients_in_the_same_order(pack: Path, tmp_path: Path) -> None:
    """With three, the order of a sum shows. The model is large enough for two buckets."""
    keys = ["model.channels=64", "train.images=36", "train.lr=1e-3", "train.clip_grad_norm=null"]
    keys += ["runtime.checkpoint_images=12", "runtime.keep_checkpoints=9"]
    whole, cut = (words(pack, tmp_path / name, *keys) for name in ("whole", "cut"))
    output = train_on_ranks(3, whole, [*cut, "train.images=12"], cut)
    assert output.count("resuming from step 1 of 3") == 1, output
    one, two = (outcome(tmp_path / name)[0] for name in ("whole", "cut"))
    assert all(torch.equal(one[name], two[name]) for name in one)
