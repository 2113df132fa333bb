"""The EDM2 network against numbers of its reference, and its own properties."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pipeline.flow.made_up import made_up
from pipeline.flow.weighting import denoising_loss, velocity_weight
from pipeline.networks.edm2 import EDM2, Attention, Block
from pipeline.networks.magnitude import Scaled, joined, normalise_weights, normalised, silu
from pipeline.training.flops import TRAINING, training_flops
from tests.conftest import resolved
from tests.networks.edm2_reference import Reference

REFERENCE = Reference()
TINY = ("experiment=tiny", "model.kind=edm2")


def denoised(net: nn.Module, z: Tensor, sigma: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """D(z; sigma) of the velocity, and the uncertainty."""
    t = 1 / (1 + sigma)
    wide = t.view(-1, 1, 1, 1)
    velocity, uncertainty = net(wide * z, t, labels, with_uncertainty=True)
    return wide * z + (1 - wide) * velocity, uncertainty


# --- the reference -------------------------------------------------------------------------------


@pytest.mark.parametrize("conditional", [True, False])
def test_denoiser_and_uncertainty_equal_the_reference(conditional: bool) -> None:
    ref, net = REFERENCE, REFERENCE.network()
    sigma = ref["sigma"]
    labels = ref["class_index"] if conditional else torch.full((3,), ref.num_classes)
    with torch.no_grad():
        image, uncertainty = denoised(net, ref["x"], sigma, labels)
    expected = ref["denoised" if conditional else "denoised_unconditional"]
    torch.testing.assert_close(image, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(uncertainty, ref["logvar"], atol=1e-5, rtol=0)


def test_the_bare_network_equals_the_reference() -> None:
    ref, net = REFERENCE, REFERENCE.network()
    sigma = ref["sigma"]
    with torch.no_grad():
        raw = net.raw(ref["x"], sigma.log() / 4, ref["class_index"])
    torch.testing.assert_close(raw, ref["raw"], atol=1e-5, rtol=1e-5)  # up to 50


def test_weights_of_a_step_are_forced_to_magnitude_1() -> None:
    net = REFERENCE.network()
    normalise_weights(net)
    state = net.state_dict()
    for name, expected in REFERENCE.tensors("forced").items():
        torch.testing.assert_close(state[name], expected, atol=1e-6, rtol=0)


def test_loss_and_gradients_equal_the_reference() -> None:
    ref, net = REFERENCE, REFERENCE.network()
    normalise_weights(net)
    sigma = (1.6 * ref["rnd_normal"] - 0.8).exp()
    t = 1 / (1 + sigma)
    wide = t.view(-1, 1, 1, 1)
    x_t = wide * ref["images"] + (1 - wide) * ref["noise"]
    velocity, u = net(x_t, t, ref["class_index"], with_uncertainty=True)
    loss = denoising_loss(velocity, ref["noise"], ref["images"], t, 0.5, u)
    loss.backward()
    assert loss.item() == pytest.approx(float(ref.fixture["loss"]), rel=1e-5)
    gradients = {name: p.grad for name, p in net.named_parameters()}
    for name, expected in ref.tensors("grad").items():
        scale = float(expected.abs().max())
        torch.testing.assert_close(gradients[name], expected, atol=1e-4 * scale, rtol=1e-4)
    norm = nn.utils.get_total_norm(gradients.values())
    assert norm.item() == pytest.approx(float(ref.fixture["grad_norm"]), rel=1e-4)


# --- its parts -----------------------------------------------------------------------------------


def test_attention_equals_the_explicit_form() -> None:
    torch.manual_seed(0)
    attention, x = Attention(48, 16), torch.randn(2, 48, 4, 4)
    qkv = attention.qkv(x).reshape(2, 3, 3, 16, 16)  # (B, of q k v, head, channel, pixel)
    q, k, v = (qkv / (1e-4 + qkv.square().mean(3, keepdim=True).sqrt())).unbind(1)
    weights = torch.softmax(torch.einsum("bhcq,bhck->bhqk", q, k) / math.sqrt(16), dim=-1)
    y = attention.proj(torch.einsum("bhqk,bhck->bhcq", weights, v).reshape(2, 48, 4, 4))
    expected = (0.7 * x + 0.3 * y) / math.sqrt(0.7**2 + 0.3**2)
    torch.testing.assert_close(attention(x), expected, atol=1e-5, rtol=1e-5)


def test_parts_keep_the_magnitude_of_normal_values() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(4, 8, 64, 64), torch.randn(4, 24, 64, 64)
    assert magnitude(silu(a)) == pytest.approx(1, abs=0.01)
    both = joined(a, b)
    assert magnitude(both) == pytest.approx(1, abs=0.01)
    parts = [float(part.square().sum()) for part in both.split([8, 24], dim=1)]
    assert parts[0] == pytest.approx(parts[1], rel=0.02)  # the same weight


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_norm_of_a_half_precision_tensor_is_taken_in_float32(dtype: torch.dtype) -> None:
    x = torch.full((1, 1024), 200.0, dtype=dtype)  # whose sum of squares float16 cannot hold
    assert normalised(x, 1).dtype == dtype
    torch.testing.assert_close(normalised(x, 1).float(), torch.ones(1, 1024), atol=1e-2, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_leaves_weights_and_noise_level_in_float32(dtype: torch.dtype) -> None:
    net = REFERENCE.network()
    x, t, labels = REFERENCE["images"], torch.tensor([0.2, 0.5, 0.9]), REFERENCE["class_index"]
    seen: dict[str, Tensor] = {}
    layers = [module for module in net.modules() if isinstance(module, Scaled)]
    plain = [layer.scaled(1.0) for layer in layers]
    net.decoder[0].register_forward_pre_hook(
        lambda _, args: seen.update(zip(("h", "embedding"), args, strict=False))
    )
    with torch.no_grad():
        expected, u = net(x, t, labels, with_uncertainty=True)
        embedding = seen["embedding"]
        with torch.autocast("cpu", dtype):
            velocity, u_cast = net(x, t, labels, with_uncertainty=True)
            cast = [layer.scaled(1.0) for layer in layers]
    assert all(torch.equal(a, b) for a, b in zip(plain, cast, strict=True))
    assert torch.equal(embedding, seen["embedding"]) and torch.equal(u, u_cast)
    assert seen["h"].dtype == dtype and velocity.dtype == torch.float32
    torch.testing.assert_close(velocity, expected, atol=0.02 * magnitude(expected), rtol=0.05)


# --- magnitudes ----------------------------------------------------------------------------------


def magnitude(x: Tensor) -> float:
    return float(x.float().square().mean().sqrt())


def magnitudes(net: nn.Module, inputs: tuple[Tensor, ...]) -> dict[str, float]:
    """Of what the stem, every block and the last convolution give in one forward pass."""
    seen: dict[str, float] = {}
    hooks = []
    for name, module in net.named_modules():
        if isinstance(module, Block) or name == "stem":
            hook = partial(lambda name, _module, _args, y: seen.update({name: magnitude(y)}), name)
            hooks.append(module.register_forward_hook(hook))
    with torch.no_grad():
        net(*inputs)
    for hook in hooks:
        hook.remove()
    return seen


def test_magnitudes_at_the_start_through_all_levels() -> None:
    words = ("model.channels=32", "model.channel_mult=[1,2,3,4]", "model.blocks=3")
    config = resolved(*TINY, *words, "model.attention_at=[4,8]", "data.resolution=32")
    torch.manual_seed(0)
    net = EDM2(config.model, 10).eval()
    t = torch.tensor([0.02, 0.3, 0.6, 0.99])
    image, noise = 0.5 * torch.randn(4, 3, 32, 32), torch.randn(4, 3, 32, 32)
    wide = t.view(-1, 1, 1, 1)
    x_t = wide * image + (1 - wide) * noise
    measured = magnitudes(net, (x_t, t, torch.tensor([0, 3, 9, 10])))
    assert len(measured) == 1 + (3 * 4 + 3) + 2 + (4 * 4 + 3)
    assert all(0.5 < value < 2 for value in measured.values()), measured


# --- as a network of a flow ----------------------------------------------------------------------


def test_it_starts_as_the_best_linear_denoiser() -> None:
    """With a gain of 0: D = c_skip z, which has a velocity at both ends of time, too."""
    net, x = EDM2(resolved(*TINY).model, 10), torch.randn(4, 3, 8, 8)
    t, labels = torch.tensor([0.0, 0.25, 0.8, 1.0]), torch.tensor([0, 3, 9, 10])
    wide = t.view(-1, 1, 1, 1)
    data = 0.25 * wide  # of x_t = t image + (1 - t) noise, with images of variance 0.25
    slope = (data - (1 - wide)) / (0.25 * wide**2 + (1 - wide) ** 2)
    torch.testing.assert_close(net(x, t, labels), slope * x, atol=1e-5, rtol=1e-5)


def test_channels_last_changes_nothing_beyond_rounding() -> None:
    net, x = REFERENCE.network(), REFERENCE["images"]
    arguments = torch.tensor([0.2, 0.5, 0.9]), REFERENCE["class_index"]
    with torch.no_grad():
        plain = net(x, *arguments)
        other = net.to(memory_format=torch.channels_last)(
            x.contiguous(memory_format=torch.channels_last), *arguments
        )
    torch.testing.assert_close(plain, other, atol=1e-5, rtol=1e-5)


def test_the_network_of_edm2_s_has_the_papers_size_and_work() -> None:
    config = resolved("experiment=edm2_s")
    with torch.device("meta"):
        net = EDM2(config.model, 1000)
    assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(280, abs=0.5)
    multiply_adds = training_flops(made_up(config, 1000)) / (2 * TRAINING)
    assert multiply_adds / 1e9 == pytest.approx(102, rel=0.02)  # they count a little more


@pytest.mark.slow
def test_it_is_one_graph_for_the_compiler() -> None:
    """Forward and backward, under autocast too, without a break and with the same numbers."""
    net = REFERENCE.network()
    inputs = REFERENCE["images"], torch.tensor([0.2, 0.5, 0.9]), REFERENCE["class_index"]
    traced = torch.compile(net, backend="aot_eager", fullgraph=True, dynamic=False)
    for half in (False, True):
        gradients = []
        for network in (net, traced):
            net.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                velocity, u = network(*inputs, None, True)
            (velocity.square().mean() + u.sum()).backward()
            gradients.append([p.grad.clone() for p in net.parameters()])
        for plain, other in zip(*gradients, strict=True):
            tolerance = (0.05 if half else 1e-4) * float(plain.abs().max())
            torch.testing.assert_close(other, plain, atol=tolerance, rtol=0)


def test_a_network_without_classes_ignores_labels() -> None:
    net = EDM2(resolved(*TINY, "model.class_conditional=false").model, 10)
    nn.init.ones_(net.out_gain)
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([0.3, 0.6])
    with torch.no_grad():
        assert torch.equal(net(x, t, torch.tensor([1, 2])), net(x, t, torch.tensor([10, -1])))


@given(st.floats(0, 1))
@settings(max_examples=30)
def test_the_weight_of_the_velocity_is_that_of_the_denoiser(t: float) -> None:
    weight = float(velocity_weight(torch.tensor([t], dtype=torch.float64), 0.5))
    assert 0.7 < weight <= 4
    if 1e-6 < t < 1 - 1e-6:
        sigma = (1 - t) / t
        assert weight == pytest.approx((1 - t) ** 2 * (sigma**2 + 0.25) / (sigma * 0.5) ** 2)


def test_without_an_uncertainty_it_counts_as_0() -> None:
    torch.manual_seed(0)
    velocity, x0, x1 = torch.randn(3, 5, 3, 4, 4).unbind(0)
    t = torch.rand(5)
    losses = [denoising_loss(velocity, x0, x1, t, 0.5, u) for u in (None, torch.zeros(5))]
    assert torch.equal(*losses)
    wide = t.view(-1, 1, 1, 1)
    x_t = wide * x1 + (1 - wide) * x0
    sigma = (1 - t) / t
    error = (x_t + (1 - wide) * velocity - x1).square().mean((1, 2, 3))
    expected = ((sigma**2 + 0.25) / (0.5 * sigma) ** 2 * error).mean()
    torch.testing.assert_close(losses[0], expected, rtol=1e-4, atol=0)
