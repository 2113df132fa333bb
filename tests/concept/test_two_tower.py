"""The network that denoises: what each sentence sees, and what it does not depend on."""

import pytest
import torch
from torch import Tensor, nn

from pipeline.base.errors import UserError
from pipeline.concept.normaliser import Normaliser
from pipeline.concept.sizes import num_parameters
from pipeline.concept.two_tower import TwoTower
from pipeline.config.load import load_step
from pipeline.config.model_keys import TwoTowerKeys
from tests.concept.documents import TWO_TOWER, config_of

SENTENCES, DIMENSION = 7, 6


def network(dropout: float = 0.0) -> TwoTower:
    """A small network with random weights in every layer."""
    keys = TwoTowerKeys(
        kind="lcm_two_tower", channels=16, layers=2, heads=2, inner_channels=24, positions="rope",
        norm="rms", mlp="swiglu", output_bias=True, dropout=dropout, final_dropout=0.0,
        denoiser_layers=2, noise_levels=10, context_dropout=0.1,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    scale = (0.5 + torch.rand(DIMENSION, generator=generator)).numpy()
    net = TwoTower(keys, Normaliser(scale - 1, scale), SENTENCES)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.4, generator=generator)
    return net


def inputs(seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Clean and noisy vectors (3,7,6), and levels."""
    generator = torch.Generator().manual_seed(seed)
    clean, noisy = torch.randn(2, 3, SENTENCES, DIMENSION, generator=generator).unbind()
    return clean, noisy, torch.randint(10, (3, SENTENCES), generator=generator)


def estimates(net: TwoTower, clean: Tensor, noisy: Tensor, levels: Tensor, alone: Tensor) -> Tensor:
    return net.denoise(noisy, levels, net.before(net.states(clean, None)), alone)


@torch.no_grad()
def test_a_sentence_sees_those_before_it_and_its_own_noisy_vector() -> None:
    net, (clean, noisy, levels) = network(), inputs()
    alone = torch.zeros(levels.shape, dtype=torch.bool)
    plain = estimates(net, clean, noisy, levels, alone)
    for place in range(SENTENCES):
        other = clean.clone()
        other[:, place] += 1
        moved = (estimates(net, other, noisy, levels, alone) - plain).abs().amax((0, 2))
        assert (moved[: place + 1] == 0).all() and (moved[place + 1 :] > 1e-4).all()
        for changed in ("noisy", "levels"):
            x, n = noisy.clone(), levels.clone()
            if changed == "noisy":
                x[:, place] += 1
            else:
                n[:, place] = (n[:, place] + 3) % 10
            moved = (estimates(net, clean, x, n, alone) - plain).abs().amax((0, 2))
            assert moved[place] > 1e-4 and (moved.argsort()[:-1] != place).all()
            assert float(moved.sum() - moved[place]) < 1e-5


@torch.no_grad()
def test_alone_it_sees_no_sentence() -> None:
    net, (clean, noisy, levels) = network(), inputs()
    alone = torch.zeros(levels.shape, dtype=torch.bool)
    alone[:, 4] = True
    one, two = (estimates(net, c, noisy, levels, alone) for c in (clean, clean + 1))
    same = ((one - two).abs().amax((0, 2)) == 0).tolist()
    assert same == [place in (0, 4) for place in range(SENTENCES)]  # the first one sees none anyway


@torch.no_grad()
def test_padding_changes_nothing() -> None:
    net, (clean, noisy, levels) = network(), inputs()
    alone = torch.zeros(levels.shape, dtype=torch.bool)
    long = estimates(net, clean, noisy, levels, alone)[:, :4]
    short = estimates(net, clean[:, :4], noisy[:, :4], levels[:, :4], alone[:, :4])
    assert torch.allclose(long, short, atol=1e-5)


@torch.no_grad()
def test_at_the_start_the_layers_of_the_denoiser_do_nothing() -> None:
    keys = config_of(*TWO_TOWER).model
    assert isinstance(keys, TwoTowerKeys)
    net = TwoTower(keys, Normaliser(*torch.tensor([[0.0] * 6, [1.0] * 6]).numpy()), SENTENCES)
    clean, noisy, levels = inputs()
    alone = levels > 100
    wanted = net.output(net.denoiser_norm(net.noisy_input(noisy)))
    assert torch.equal(estimates(net, clean, noisy, levels, alone), wanted)


def test_masks_of_dropout_follow_the_document() -> None:
    net, (clean, noisy, levels) = network(dropout=0.3).train(), inputs()
    keys = torch.arange(6, dtype=torch.int32).view(3, 2)
    signal = torch.full(levels.shape, 0.6)
    given = (signal, 0.8 * torch.ones_like(signal), noisy)
    whole = net(clean, given, levels, levels > 100, keys)[0]
    parts = [
        net(clean[i], tuple(x[i] for x in given), levels[i], levels[i] > 100, keys[i])[0]
        for i in (slice(2, 3), slice(0, 2))
    ]
    assert torch.allclose(torch.cat([parts[1], parts[0]]), whole, atol=1e-5)
    assert not torch.allclose(
        net(clean, given, levels, levels > 100, keys + 1)[0], whole, atol=1e-3
    )


@pytest.mark.parametrize(
    ("width", "heads", "inner", "layers", "size"),
    [
        (2048, 16, 5632, 13, 1_645_538_304),  # as LCM's code builds it; its comment is older
        (4096, 32, 11008, 14, 6_930_781_696),  # as published, and built
    ],
)
def test_sizes_of_the_recipes(width: int, heads: int, inner: int, layers: int, size: int) -> None:
    """LCM's layers of the denoiser have queries and keys besides, two maps of the width."""
    shape = {"channels": width, "heads": heads, "inner_channels": inner, "denoiser_layers": layers}
    words = [f"model.{key}={value}" for key, value in shape.items()]
    config = load_step(["experiment=lcm_two_tower_1_6b", *words], (), {})[0]
    assert num_parameters(config) + layers * 2 * width * (width + 1) == size


def test_what_cannot_be_built_is_one_sentence() -> None:
    with pytest.raises(UserError, match="model.heads=3 does not divide the 8 pairs of channels"):
        load_step(["experiment=lcm_two_tower_smoke", "model.channels=16", "model.heads=3"], (), {})
    with pytest.raises(UserError, match="model.noise_levels=1 is not valid"):
        config_of(*TWO_TOWER, "model.noise_levels=1")
