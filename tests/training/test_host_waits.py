"""A training step never waits for its device: the host would leave it without work meanwhile.

On the meta device nothing has a value, so whatever would wait for one raises. What is different
there (autocast, the fused optimiser, the scaler of fp16) is watched on the CPU by name.
"""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pipeline.compute import execution
from pipeline.compute.distributed import Ranks
from pipeline.flow import probability_path
from pipeline.flow.made_up import made_up
from pipeline.sampling.field import Field
from pipeline.training.job import Job
from pipeline.training.trainer import Trainer
from tests.conftest import resolved
from tests.random_networks import random_net

IMAGENET = ("model.dropout=0.1", "train.flip=true", "train.label_dropout=0.2")
CIFAR = (
    "model.residual_updown=false", "model.conv_resample=true", "model.scale_shift_norm=false",
    "model.class_conditional=false", "model.head_channels=null", "model.heads=2",
)  # fmt: skip

# How Python code gets values or sizes from a device
WAITS = {
    "item", "tolist", "cpu", "numpy", "nonzero", "argwhere", "masked_select", "unique", "equal",
    "allclose", "is_nonzero", "tensor", "__bool__", "__int__", "__float__", "__index__",
    "__array__", "__contains__",
}  # fmt: skip


class Watched(TorchFunctionMode):
    """Keeps the names of the calls in it for which a host waits for its device."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        name = getattr(func, "__name__", str(func))
        if name in WAITS or (name in ("__getitem__", "__setitem__") and has_mask(args[1])):
            self.names.append(name)
        return func(*args, **(kwargs or {}))


def has_mask(index: Any) -> bool:
    parts = index if isinstance(index, tuple) else (index,)
    return any(isinstance(part, Tensor) and part.dtype == torch.bool for part in parts)


def trainer(folder: Path, device: str, *words: str) -> Trainer:
    """Of two micro-batches a step."""
    config = resolved(
        "experiment=tiny", "train.batch=8", "runtime.micro_batch=4", "train.clip_grad_norm=1",
        "train.ema_halflife_images=[64,0]", *words,
    )  # fmt: skip
    job = Job(config, made_up(config, 10), folder, folder / "checkpoints")
    return Trainer(job, Ranks(0, 1, torch.device(device)))


def without_device(patch: pytest.MonkeyPatch) -> None:
    """The two things that the meta device does not know: autocast and the fused optimiser."""
    plain = torch.optim.AdamW

    def unfused(*args: Any, fused: bool, **kwargs: Any) -> torch.optim.AdamW:
        return plain(*args, fused=False, **kwargs)

    patch.setattr(torch.optim, "AdamW", unfused)
    patch.setattr(execution, "autocast", lambda *_: nullcontext())


@pytest.fixture
def no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    without_device(monkeypatch)


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(IMAGENET, id="imagenet", marks=pytest.mark.slow),
        pytest.param(CIFAR, id="cifar"),
    ],
)
def test_a_step_needs_no_value(tmp_path: Path, no_device: None, words: tuple[str, ...]) -> None:
    subject = trainer(tmp_path, "meta", *words)
    subject.train_step()
    assert subject.step == 1 and subject.net.stem.weight.grad.is_meta
    with pytest.raises((RuntimeError, NotImplementedError)):
        subject.row(1, 1.0)  # reads the loss


PLANTED: dict[str, Callable[[Tensor], object]] = {
    "item": lambda loss: loss.item(),
    "__float__": float,
    "__bool__": lambda loss: 1 if loss > 0 else 2,
    "cpu": lambda loss: loss.cpu(),
    "tolist": lambda loss: loss.tolist(),
    "nonzero": lambda loss: (loss > 0).nonzero(),
    "__getitem__": lambda loss: loss[loss > 0],
}


def plant(name: str, patch: pytest.MonkeyPatch) -> None:
    """Make the loss look at its value in the way that is named."""
    plain = probability_path.loss

    def curious(*args: Tensor) -> Tensor:
        loss = plain(*args)
        PLANTED[name](loss.detach())
        return loss

    patch.setattr(probability_path, "loss", curious)


@pytest.fixture(scope="module")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trainer]:
    folder = tmp_path_factory.mktemp("watched")
    with pytest.MonkeyPatch.context() as patch:
        without_device(patch)
        meta = trainer(folder, "meta", *IMAGENET)
    return {"meta": meta, "cpu": trainer(folder, "cpu", *IMAGENET)}


@pytest.mark.parametrize("name", PLANTED)
def test_a_look_at_the_loss_is_noticed(
    subjects: dict[str, Trainer], no_device: None, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    plant(name, monkeypatch)
    with pytest.raises((RuntimeError, NotImplementedError)):
        subjects["meta"].train_step()


@pytest.mark.parametrize("name", PLANTED)
def test_a_look_at_the_loss_is_noticed_by_name(
    subjects: dict[str, Trainer], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    plant(name, monkeypatch)
    with Watched() as watched:
        subjects["cpu"].train_step()
    assert set(watched.names) == {name} and len(watched.names) == 2  # once a micro-batch


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_step_of_each_precision_waits_for_nothing(tmp_path: Path, precision: str) -> None:
    subject = trainer(tmp_path, "cpu", *IMAGENET, f"train.precision={precision}")
    with Watched() as watched:
        for _ in range(2):
            subject.train_step()
    assert watched.names == []
    with Watched() as watched:
        subject.row(2, 1.0)
    assert watched.names


@pytest.mark.parametrize("solver", ["euler", "midpoint", "heun", "rk4", "ab2", "ab3"])
def test_a_fixed_grid_needs_no_value(solver: str, no_device: None) -> None:
    keys = resolved("experiment=tiny", f"sample.solver={solver}", "sample.guidance=2")
    net = random_net(keys.model, 0).eval().to("meta")
    labels = torch.zeros(3, dtype=torch.int64, device="meta")
    field = Field(keys.sample, net, labels, 10)
    x = torch.empty(3, 3, 8, 8, device="meta")
    with torch.inference_mode():
        done = field.solve(x, torch.linspace(0, 1, 5, dtype=torch.float64))
    assert done.is_meta and done.shape == x.shape
