"""The compiled network is one graph, compiled once for a shape, in training and in sampling."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from pipeline.compute import execution
from pipeline.compute.distributed import Ranks
from pipeline.config.schema import Config
from pipeline.flow.made_up import made_up
from pipeline.sampling.field import Field
from pipeline.training.job import Job
from pipeline.training.trainer import Trainer
from tests.conftest import resolved
from tests.random_networks import random_net
from tests.training.test_host_waits import CIFAR, IMAGENET

CPU = Ranks(0, 1, torch.device("cpu"))


@pytest.fixture(params=[IMAGENET, CIFAR], ids=["imagenet", "cifar"])
def config(request: pytest.FixtureRequest) -> Config:
    return resolved(
        "experiment=tiny", "runtime.compile=true", "train.batch=8", "runtime.micro_batch=4",
        "sample.guidance=2", *request.param,
    )  # fmt: skip


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[CompileCounterWithBackend]:
    """Counts the graphs that torch.compile makes; they are run as they are."""
    counter = CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter))
    monkeypatch.setattr(execution, "compiler", lambda device: "none is needed")
    torch._dynamo.reset()
    yield counter
    torch._dynamo.reset()


def inputs(config: Config, num: int) -> tuple[Tensor | None, ...]:
    batch = made_up(config, 10).zeros(num, CPU.device)
    return batch.x1, batch.t, batch.labels, batch.keys


@pytest.mark.parametrize("training", [True, False])
def test_the_network_is_one_graph(config: Config, training: bool) -> None:
    net = random_net(config.model, 0).train(training)
    seen = torch._dynamo.explain(net)(*inputs(config, 2))
    assert (seen.graph_count, seen.graph_break_count) == (1, 0), seen.break_reasons


def test_a_break_is_noticed(config: Config) -> None:
    net = random_net(config.model, 0)
    net.time_mlp.register_forward_hook(lambda module, args, out: out * (2 if out.sum() > 0 else 1))
    seen = torch._dynamo.explain(net)(*inputs(config, 2))
    assert seen.graph_break_count > 0


@pytest.mark.slow
def test_training_compiles_once(
    config: Config, compiler: CompileCounterWithBackend, tmp_path: Path
) -> None:
    job = Job(config, made_up(config, 10), tmp_path, tmp_path / "checkpoints")
    subject = Trainer(job, CPU)
    for _ in range(3):
        subject.train_step()
    subject.load_state(subject.state())
    subject.train_step()
    subject.row(4, 1.0)
    assert compiler.frame_count == 1


@torch.inference_mode()
def solved(config: Config, net: torch.nn.Module, num: int) -> None:
    """`num` images by the sampler of `config`, all tensors made in inference mode as it does."""
    no_class = 10 if config.model.class_conditional else None
    field = Field(config.sample, net, torch.arange(num), no_class)
    x = torch.randn(num, 3, 8, 8, generator=torch.Generator().manual_seed(num))
    field.solve(x, torch.linspace(0, 1, 4, dtype=torch.float64))


def test_a_fixed_grid_compiles_once(config: Config, compiler: CompileCounterWithBackend) -> None:
    net = execution.prepare(random_net(config.model, 0).eval(), CPU.device, True, loud=False)
    for _ in range(2):
        solved(config, net, 5)
    assert compiler.frame_count == 1


@pytest.mark.slow
def test_changing_numbers_of_images_compile_twice(
    config: Config, compiler: CompileCounterWithBackend
) -> None:
    """dopri5 evaluates the images that are not finished: the second number makes all others."""
    keys = config.sample.model_copy(update={"solver": "dopri5", "rtol": 1e-2, "atol": 1e-2})
    config = config.model_copy(update={"sample": keys})
    net = execution.prepare(random_net(config.model, 0).eval(), CPU.device, True, loud=False)
    sizes: set[int] = set()
    net.register_forward_pre_hook(lambda module, args: sizes.add(len(args[0])))
    for num in (5, 4):
        solved(config, net, num)
    assert len(sizes - {1}) >= 2
    assert compiler.frame_count <= 2 + (1 in sizes)  # torch treats a single one differently
