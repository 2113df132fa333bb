"""The network against numbers printed by the public reference trainer, and its own properties."""

import pytest
import torch

from pipeline.bench.gpu_check.networks import model_keys
from pipeline.flow import probability_path
from pipeline.networks.unet import UNet
from tests.conftest import load_fixture, our_state, resolved

FIXTURES = ["unet_imagenet_tiny", "unet_cifar_tiny"]


def build(name: str) -> tuple[UNet, dict[str, torch.Tensor]]:
    fixture, arguments = load_fixture(name)
    net = UNet(model_keys(arguments), arguments["num_classes"] or 10).eval()
    net.load_state_dict(our_state(fixture))
    data = {
        k: torch.from_numpy(fixture[k]) for k in fixture.files if k[:5] not in ("state", "confi")
    }
    return net, data


@pytest.mark.parametrize("name", FIXTURES)
def test_velocity_equals_the_reference(name: str) -> None:
    net, data = build(name)
    none = torch.full((3,), net.num_classes)
    with torch.no_grad():
        torch.testing.assert_close(
            net(data["x"], data["t"], none), data["v_uncond"], atol=1e-4, rtol=0
        )
        if "v_cond" in data:
            velocity = net(data["x"], data["t"], data["labels"])
            torch.testing.assert_close(velocity, data["v_cond"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", FIXTURES)
def test_loss_and_gradient_norm_equal_the_reference(name: str) -> None:
    net, data = build(name)
    labels = torch.arange(3)
    xt = probability_path.interpolate(data["x0"], data["x1"], data["t_train"])
    loss = probability_path.loss(net(xt, data["t_train"], labels), data["x0"], data["x1"])
    loss.backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in net.parameters() if p.grad is not None])
    assert loss.item() == pytest.approx(float(data["loss"]), rel=1e-5)
    assert norm.item() == pytest.approx(float(data["grad_norm"]), rel=1e-4)


def test_channels_last_changes_nothing_beyond_rounding() -> None:
    net, data = build(FIXTURES[0])
    with torch.no_grad():
        plain = net(data["x"], data["t"], data["labels"])
        net = net.to(memory_format=torch.channels_last)
        other = net(
            data["x"].contiguous(memory_format=torch.channels_last), data["t"], data["labels"]
        )
    torch.testing.assert_close(plain, other, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "options", [(), ("model.residual_updown=false",), ("model.scale_shift_norm=false",)]
)
def test_starts_at_zero_and_keeps_shape(options: tuple[str, ...]) -> None:
    config = resolved("experiment=tiny", *options)
    net = UNet(config.model, 10)
    x = torch.randn(2, 3, 8, 8)
    velocity = net(x, torch.rand(2), torch.tensor([0, 10]))
    assert velocity.shape == x.shape
    assert not velocity.any()


def test_reference_experiment_has_adms_size() -> None:
    with torch.device("meta"):
        net = UNet(resolved().model, 1000)
    millions = sum(p.numel() for p in net.parameters()) / 1e6
    assert millions == pytest.approx(296, abs=0.5)  # ADM's ImageNet-64 model, study of 2021


def test_the_stem_is_as_wide_as_the_first_level() -> None:
    net = UNet(resolved("experiment=tiny", "model.channel_mult=[2,2]").model, 10)
    assert net.stem.out_channels == net.out_norm.num_channels == 64
    assert net(torch.zeros(1, 3, 8, 8), torch.zeros(1), torch.zeros(1).long()).shape[1] == 3
