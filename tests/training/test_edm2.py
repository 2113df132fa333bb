"""The EDM2 network in training: normalised weights, any ranks, resumed to the bit, sampled."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import sample, train
from pipeline.base.errors import UserError
from pipeline.compute.distributed import Ranks
from pipeline.flow import probability_path
from pipeline.flow.weighting import denoising_loss
from pipeline.networks.magnitude import Scaled
from pipeline.training import checkpoint, weights_file
from pipeline.training.trainer import Trainer
from tests.networks.test_edm2 import magnitudes
from tests.on_ranks import train_on_ranks
from tests.test_train import difference, losses, outcome, run, words

EDM2 = [
    "model.kind=edm2",
    "model.channel_mult=[1,2]",
    "model.attention_at=[2]",
    "train.lr=5e-3",
    "train.betas=[0.9,0.99]",
    "train.lr_schedule=inverse_sqrt",
    "train.lr_decay_images=48",
    "train.times=edm_skew",
    "train.time_mean=-0.8",
    "train.time_std=1.6",
]
WEIGHTINGS = ["denoising", "velocity"]
STRATEGIES = ["ddp", "fsdp2"]
CPU = Ranks(0, 1, torch.device("cpu"))


def keys(weighting: str) -> list[str]:
    return [*EDM2, f"train.weighting={weighting}"]


@pytest.fixture(scope="module")
def trained(pack: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of a run of each weighting: one process, one pass a step."""
    folders = {kind: tmp_path_factory.mktemp(kind) for kind in WEIGHTINGS}
    for kind, out in folders.items():
        run(pack, out, *keys(kind), "runtime.keep_checkpoints=9")
    return folders


@pytest.fixture(scope="module")
def by_two(pack: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of two ranks in <weighting>-<strategy>, and in <strategy> what they did with a run of
    one process in its middle.
    """
    root, middle = tmp_path_factory.mktemp("two"), "runtime.keep_checkpoints=9"
    runs = [
        words(pack, root / f"{kind}-{strategy}", *keys(kind), f"runtime.strategy={strategy}",
              "runtime.micro_batch=3")
        for kind in WEIGHTINGS for strategy in STRATEGIES
    ]  # fmt: skip
    for strategy in STRATEGIES:
        run(pack, root / strategy, *keys("denoising"), "train.images=48")
        more = [*keys("denoising"), f"runtime.strategy={strategy}", middle]
        runs.append(words(pack, root / strategy, *more))
    output = train_on_ranks(2, *runs)
    assert output.count("resuming from step 4 of 8") == 2, output
    return root


def same(one: Path, two: Path) -> None:
    """The same losses and gradient norms at every step, and the same weights."""
    (weights, rows), (other_weights, other_rows) = outcome(one), outcome(two)
    np.testing.assert_allclose(losses(rows), losses(other_rows), rtol=1e-5)
    norms = [[row["grad_norm"] for row in r] for r in (rows, other_rows)]
    np.testing.assert_allclose(*norms, rtol=1e-3)
    assert difference(weights, other_weights) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_accumulation_changes_nothing(
    trained: dict[str, Path], pack: Path, tmp_path: Path, weighting: str
) -> None:
    run(pack, tmp_path, *keys(weighting), "runtime.micro_batch=3")
    same(trained[weighting], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_two_ranks_train_the_same(
    trained: dict[str, Path], by_two: Path, weighting: str, strategy: str
) -> None:
    same(trained[weighting], by_two / f"{weighting}-{strategy}")


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_resumed_it_is_the_same_to_the_bit(
    trained: dict[str, Path], pack: Path, weighting: str
) -> None:
    out = trained[weighting]
    weights, rows = outcome(out)
    for path in out.glob("checkpoints/*/step-*.pt"):
        if checkpoint.step_of(path) > 4:
            path.unlink()
    (out / "weights.safetensors").unlink()
    again, rows_again = run(pack, out, *keys(weighting), "runtime.keep_checkpoints=9")
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    assert losses(rows) == losses(rows_again)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_ranks_go_on_from_one(trained: dict[str, Path], by_two: Path, strategy: str) -> None:
    same(trained["denoising"], by_two / strategy)


def test_weights_have_magnitude_1_after_every_step(pack: Path, tmp_path: Path) -> None:
    trainer = Trainer(train.prepare(words(pack, tmp_path, *keys("denoising")), 1), CPU)
    layers = [module for module in trainer.net.modules() if isinstance(module, Scaled)]
    before = [layer.weight.clone() for layer in layers]
    for _ in range(3):
        trainer.train_step()
        for layer in layers:
            square = layer.weight.detach().flatten(1).square().mean(1)
            torch.testing.assert_close(square, torch.ones_like(square), atol=1e-3, rtol=0)
    moved = [not torch.equal(a, b.weight) for a, b in zip(before, layers, strict=True)]
    assert all(moved)


@pytest.mark.parametrize("precision", ["bf16", pytest.param("fp16", marks=pytest.mark.slow)])
def test_half_precision_learns_the_same(
    trained: dict[str, Path], pack: Path, tmp_path: Path, precision: str
) -> None:
    steps = {"bf16": 8, "fp16": 3}[precision]  # a CPU has slow convolutions of fp16
    more = (f"train.precision={precision}", f"train.images={12 * steps}")
    _, rows = run(pack, tmp_path, *keys("denoising"), *more)
    reference = losses(outcome(trained["denoising"])[1])[:steps]
    np.testing.assert_allclose(losses(rows), reference, rtol=5e-2)
    assert losses(rows) != reference


def test_its_weights_are_sampled(trained: dict[str, Path], tmp_path: Path) -> None:
    weights = trained["denoising"] / "weights.safetensors"
    about = weights_file.read_about(weights)
    assert about.config["model"]["kind"] == "edm2"
    assert about.config["train"]["weighting"] == "denoising"
    sampler = ["sample.num=4", "sample.guidance=2", "sample.solver=heun", "sample.grid=edm"]
    sample.main(["experiment=tiny", f"weights={weights}", f"out={tmp_path}", *sampler])
    images = np.load(tmp_path / "images.npy")
    assert images.shape == (4, 8, 8, 3) and images.std() > 10


def test_it_starts_from_its_weights_and_from_no_others(
    trained: dict[str, Path], pack: Path, tmp_path: Path
) -> None:
    start = f"train.start={trained['denoising'] / 'weights.safetensors'}"
    job = train.prepare(words(pack, tmp_path, *keys("velocity"), start), 1)
    trainer = Trainer(job, CPU)
    assert job.start is not None and job.start.path is not None
    trainer.begin(weights_file.load_weights(job.start.path), {})
    for layer in trainer.net.modules():  # averages are shorter
        if isinstance(layer, Scaled):
            square = layer.weight.detach().square().mean()
            assert float(square) == pytest.approx(1, abs=1e-3)
    with pytest.raises(UserError, match=r"model.kind=edm2 \(here unet\)"):
        train.prepare(words(pack, tmp_path, start), 1)


def test_without_decay_the_optimiser_is_adam(pack: Path, tmp_path: Path) -> None:
    more = ["train.weight_decay=0", "train.betas=[0.9,0.99]", "train.eps=1e-3"]
    trainer = Trainer(train.prepare(words(pack, tmp_path, *more), 1), CPU)
    copy = [p.detach().clone().requires_grad_() for p in trainer.net.parameters()]
    adam = torch.optim.Adam(copy, lr=1e-3, betas=(0.9, 0.99), eps=1e-3)
    for _ in range(3):
        trainer.train_step()
        for ours, theirs in zip(trainer.net.parameters(), copy, strict=True):
            theirs.grad = ours.grad
        adam.param_groups[0]["lr"] = trainer.optimizer.param_groups[0]["lr"]
        adam.step()
    for ours, theirs in zip(trainer.net.parameters(), copy, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-7, rtol=1e-6)


def test_a_unet_can_have_the_denoisers_weighting(pack: Path, tmp_path: Path) -> None:
    job = train.prepare(words(pack, tmp_path, "train.weighting=denoising", "model.dropout=0"), 1)
    trainer = Trainer(job, CPU)
    batch = job.workload.batch(np.arange(12))
    x_t = probability_path.interpolate(batch.x0, batch.x1, batch.t)
    velocity = trainer.net(x_t, batch.t, batch.labels).detach()
    expected = denoising_loss(velocity, batch.x0, batch.x1, batch.t, 0.5)
    assert float(job.workload.loss(trainer.net, batch).detach()) == pytest.approx(
        float(expected), rel=1e-6
    )


@pytest.mark.slow
def test_magnitudes_stay_over_200_steps(pack: Path, tmp_path: Path) -> None:
    more = ["train.images=2400", "train.lr=1e-2", "train.lr_decay_images=1200"]
    trainer = Trainer(train.prepare(words(pack, tmp_path, *keys("denoising"), *more), 1), CPU)
    first = trainer.workload.batch(np.arange(12))
    x_t = probability_path.interpolate(first.x0, first.x1, first.t)
    sums = [0.0]  # of losses, up to each ten steps
    for _ in range(20):
        for _ in range(10):
            trainer.train_step()
        sums.append(float(trainer.loss_sum))
        measured = magnitudes(trainer.net, (x_t, first.t, first.labels))
        assert all(0.5 < value < 2 for value in measured.values()), (trainer.step, measured)
    assert sums[20] - sums[15] < 0.9 * (sums[5] - sums[0])  # it learns
