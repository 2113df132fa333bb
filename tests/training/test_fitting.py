"""The largest micro-batch under a limit of memory, by an oracle that tries them all."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from pipeline.base.errors import UserError
from pipeline.compute.distributed import Ranks
from pipeline.config.schema import Config
from pipeline.flow.made_up import made_up
from pipeline.flow.workload import FlowMatching
from pipeline.training import fitting
from tests.conftest import resolved

CPU = Ranks(0, 1, torch.device("cpu"))


@given(
    share=st.integers(1, 600),
    fixed=st.integers(0, 10**6),
    each=st.integers(1, 10**5),
    limit=st.integers(0, 10**7),
)
def test_it_is_the_largest_divisor_that_fits(share: int, fixed: int, each: int, limit: int) -> None:
    def measure(images: int) -> int:
        assert images <= min(2, share)  # larger ones may not fit
        return fixed + each * images

    fitting_ones = [n for n in range(1, share + 1) if share % n == 0 and fixed + each * n <= limit]
    if fitting_ones:
        assert fitting.largest_that_fits(share, limit, measure) == max(fitting_ones)
    else:
        with pytest.raises(UserError):
            fitting.largest_that_fits(share, limit, measure)


def test_not_even_one_image_names_both_numbers_and_what_helps() -> None:
    with pytest.raises(UserError, match=r"takes 3.00 GB .* 2.50 GB are left: .*fsdp2.*smaller"):
        fitting.largest_that_fits(4, 2_500_000_000, lambda images: 3 * 10**9 * images)


def test_where_the_estimate_was_too_high_the_next_divisor_is_tried() -> None:
    tried = []

    def attempt(images: int) -> None:
        tried.append(images)
        if images > 7:
            raise torch.OutOfMemoryError

    assert fitting.largest_that_runs(24, 12, attempt, CPU) == 6
    assert tried == [12, 8, 6]


def test_no_number_that_runs_is_an_error() -> None:
    def attempt(images: int) -> None:
        raise torch.OutOfMemoryError

    with pytest.raises(UserError, match="not even a batch of one"):
        fitting.largest_that_runs(4, 4, attempt, CPU)


@pytest.fixture(scope="module")
def config() -> Config:
    return resolved("experiment=tiny", "train.precision=bf16")


@pytest.fixture(scope="module")
def workload(config: Config) -> FlowMatching:
    return made_up(config, 10)


@pytest.fixture(scope="module")
def net(workload: FlowMatching) -> nn.Module:
    torch.manual_seed(0)
    return workload.build()


def saved_bytes(net: nn.Module, workload: FlowMatching, images: int) -> int:
    """Bytes that a real pass keeps for its backward pass, weights included."""
    storages: dict[int, int] = {}

    def count(value: Tensor) -> Tensor:
        storages[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(count, lambda value: value):
        fitting.rehearse(net, workload, "bf16", images, CPU.device)
    return sum(storages.values())


def test_what_a_real_pass_keeps_is_a_straight_line(net: nn.Module, workload: FlowMatching) -> None:
    one, two, many = (saved_bytes(net, workload, images) for images in (1, 2, 16))
    assert many == pytest.approx(one + 15 * (two - one), rel=0.01)
    assert many > 3 * one


def test_under_a_fake_limit_a_real_pass_decides(
    net: nn.Module,
    workload: FlowMatching,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    """All of `measured`, with a device that knows its memory only by what the pass keeps."""
    peak: list[int] = []
    plain = fitting.rehearse

    def rehearse(model: nn.Module, *rest: object) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(fitting, "rehearse", plain)
            peak.append(saved_bytes(model, workload, int(str(rest[2]))))

    monkeypatch.setattr(fitting, "rehearse", rehearse)
    state = {name: value.clone() for name, value in net.state_dict().items()}
    moments = 2 * 4 * sum(value.numel() for value in state.values())
    room = saved_bytes_between(net, workload, plain, 6, 12, monkeypatch)
    monkeypatch.setattr(fitting, "free_memory", lambda device: int((room + moments) / 0.9))
    for name in ("memory_allocated", "memory_reserved"):
        monkeypatch.setattr(torch.cuda, name, lambda device: 0)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: peak.clear())
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: max(peak))
    whole = SimpleNamespace(total_memory=10**9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: whole)
    random = torch.get_rng_state()

    assert fitting.measured(net, workload, "bf16", 12, CPU, sharded=False) == 6
    assert "micro-batch 6 of 12 images a process: " in capsys.readouterr().out
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())


def saved_bytes_between(
    net: nn.Module,
    workload: FlowMatching,
    plain: object,
    low: int,
    high: int,
    patch: pytest.MonkeyPatch,
) -> int:
    """A limit that `low` images keep and `high` do not."""
    with patch.context() as inner:
        inner.setattr(fitting, "rehearse", plain)
        return (saved_bytes(net, workload, low) + saved_bytes(net, workload, high)) // 2


def test_a_pass_draws_nothing() -> None:
    workload = made_up(resolved("experiment=tiny", "model.dropout=0.5"), 10)
    net = workload.build()
    before = torch.get_rng_state()
    fitting.rehearse(net, workload, "bf16", 2, CPU.device)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(parameter.grad is not None for parameter in net.parameters())
