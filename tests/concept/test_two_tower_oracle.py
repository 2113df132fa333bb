"""The two-tower network, its loss and its samples against numbers of LCM's own (commit fd7db80).

fixtures/lcm_two_tower_tiny.npz: two tiny networks with random weights, built and called by LCM's
builder, criterion and sampler (fairseq2 0.3.0, torch 2.5.1, float32, CPU). Variant a is of its
recipe's kind, b has learned positions, LayerNorm, ReLU and no bias on the attention's output.
`sample_N` are the levels, start and end of samples when N steps are asked for, with the weight and
the rescaling of the guidance in `settings`; `first/NAME` are mean, standard deviation and largest
absolute value of the recipe's weights before training, with 256 channels and one layer per tower.
"""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.concept.loss import denoising_error
from pipeline.concept.noise import ddim, noise_of, signals, trailing
from pipeline.concept.normaliser import Normaliser
from pipeline.concept.two_tower import TwoTower
from pipeline.config.model_keys import TwoTowerKeys
from tests.conftest import ROOT

FILE = ROOT / "tests" / "fixtures" / "lcm_two_tower_tiny.npz"
LEVELS, MAX_SENTENCES = 100, 12
SHAPE: dict[str, Any] = {
    "kind": "lcm_two_tower", "channels": 16, "layers": 2, "denoiser_layers": 2, "heads": 2,
    "dropout": 0.0, "final_dropout": 0.0, "noise_levels": LEVELS, "context_dropout": 0.4,
}  # fmt: skip
VARIANTS = {
    "a": TwoTowerKeys(
        **SHAPE, inner_channels=256, positions="rope", norm="rms", mlp="swiglu", output_bias=True
    ),
    "b": TwoTowerKeys(
        **SHAPE, inner_channels=24, positions="learned", norm="layer", mlp="relu", output_bias=False
    ),
}
# Queries and keys of an attention in which each sentence sees itself alone: ours has none
NOT_OURS = [
    f"denoiser.layers.{n}.self_attn.{map}_proj.{part}"
    for n in range(2)
    for map in "qk"
    for part in ("weight", "bias")
]
# Parts of their names and of ours, in this order
OF_READER = {
    "encoder_frontend.pre_linear": "input",
    "encoder_frontend.pos_encoder.weight": "positions",
    "context_encoder.layer_norm": "norm",
    "context_encoder.layers": "layers",
    "self_attn_layer_norm": "attention_norm",
    "self_attn": "attention",
    "ffn_layer_norm": "mlp_norm",
}
OF_DENOISER = {
    "denoiser.embed_time.fc1": "level.inner",
    "denoiser.embed_time.fc2": "level.outer",
    "denoiser.initial_proj.fc": "noisy_input",
    "denoiser.final_proj.fc": "output",
    "denoiser.layer_norm": "denoiser_norm",
    "denoiser.layers": "denoiser",
    "cross_attention_layer_norm": "norms.1",
    "self_attn_layer_norm": "norms.0",
    "ffn_layer_norm": "norms.2",
    "self_attn.v_proj": "own.0",
    "self_attn.output_proj": "own.1",
    "cross_attention": "attention",
    "modulator.fc": "modulation",
}
OF_BOTH = {
    "q_proj": "query",
    "k_proj": "key",
    "v_proj": "value",
    "output_proj": "output",
    "gate_proj": "gate",
    "inner_proj": "inner",
    "ffn": "mlp",
}


def our_name(theirs: str) -> str:
    names = OF_DENOISER if theirs.startswith("denoiser") else OF_READER
    for part, ours in {**names, **OF_BOTH}.items():
        theirs = theirs.replace(part, ours)
    return theirs


def tensors(prefix: str) -> dict[str, Tensor]:
    """The arrays whose keys begin with `prefix`, which is taken off; numbers as float32."""
    with np.load(FILE) as file:
        found = {key[len(prefix) :]: file[key] for key in file.files if key.startswith(prefix)}
    half = {name: array for name, array in found.items() if array.dtype == np.float16}
    found.update({name: array.astype(np.float32) for name, array in half.items()})
    return {name: torch.from_numpy(array) for name, array in found.items()}


def network(variant: str) -> TwoTower:
    """The network of a variant with the oracle's weights."""
    parts = tensors("normalizer/")
    normaliser = Normaliser(parts["center"].numpy(), parts["scale"].numpy())
    net = TwoTower(VARIANTS[variant], normaliser, MAX_SENTENCES)
    theirs = tensors(f"{variant}/weight/")
    ours = {our_name(name): value for name, value in theirs.items() if name not in NOT_OURS}
    net.load_state_dict({**ours, **dict(net.named_buffers())})
    return net


def documents() -> tuple[Tensor, Tensor]:
    """Raw vectors (3,9,6) padded with zeros, and lengths (3,)."""
    parts = [*tensors("docs/").values()]
    vectors = nn.utils.rnn.pad_sequence(parts, batch_first=True)
    return vectors, torch.tensor([len(part) for part in parts])


def estimates(net: TwoTower, wanted: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Estimates and what is true, with the oracle's noise."""
    levels, signal = wanted["levels"], signals(LEVELS)
    noise = signal.float()[levels], noise_of(signal).float()[levels], wanted["noise"]
    both: tuple[Tensor, Tensor] = net(documents()[0], noise, levels, wanted["alone"])
    return both


def test_signals_are_theirs() -> None:
    theirs = tensors("squared_signals_100")[""]
    assert torch.allclose(signals(LEVELS).square().float(), theirs, atol=1e-6, rtol=0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_estimates_are_theirs(variant: str) -> None:
    wanted, (vectors, lengths) = tensors(f"{variant}/"), documents()
    predicted, true = estimates(network(variant), wanted)
    real = torch.arange(vectors.shape[1]) < lengths[:, None]
    assert wanted["alone"].any() and {0, LEVELS - 1} <= set(wanted["levels"][real].tolist())
    assert torch.allclose(true, wanted["normalized_input"], atol=1e-6)
    assert torch.allclose(predicted[real], wanted["output"][real], atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_loss_and_gradients_are_theirs(variant: str) -> None:
    wanted, net = tensors(f"{variant}/"), network(variant)
    loss = denoising_error(*estimates(net, wanted), documents()[1])
    assert float(loss.detach()) == pytest.approx(float(wanted["loss"]), rel=1e-5)
    loss.backward()
    ours = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    norm = float(nn.utils.get_total_norm(ours.values()))
    assert norm == pytest.approx(float(wanted["grad_norm"]), rel=1e-5)
    theirs = tensors(f"{variant}/grad/")
    assert len(theirs) > 30
    for name, gradient in theirs.items():
        mine = torch.zeros(()) if name in NOT_OURS else ours[our_name(name)]
        assert torch.allclose(mine, gradient, atol=1e-4, rtol=1e-4), name


def test_first_weights_are_spread_as_theirs() -> None:
    keys = VARIANTS["a"].model_copy(update={"channels": 256, "layers": 1, "denoiser_layers": 1})
    torch.manual_seed(0)
    net = TwoTower(keys, Normaliser(*np.array([[0.0], [1.0]]).repeat(1024, 1)), MAX_SENTENCES)
    theirs = {our_name(n): x for n, x in tensors("first/").items() if n not in NOT_OURS}
    ours = {name: p.detach() for name, p in net.named_parameters()}
    assert set(ours) == set(theirs)
    for name, x in ours.items():
        mean, spread, largest = theirs[name].tolist()
        assert float(x.mean()) == pytest.approx(mean, abs=0.4 * spread), name
        assert float(x.std()) == pytest.approx(spread, rel=0.1), name
        assert float(x.abs().max()) == pytest.approx(largest, rel=0.1), name


@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("asked", "done"), [(40, 50), (20, 20), (10, 10)])
def test_samples_are_theirs(variant: str, asked: int, done: int) -> None:
    """The fifth sentence of a document; asked for 40 steps, LCM does 50."""
    wanted, net = tensors(f"{variant}/sample_{asked}/"), network(variant)
    guidance, rescale, _ = wanted["settings"].tolist()
    normalised = net.normalise(documents()[0][1:2, :5])
    context = net.before(net.states(normalised, None))
    every = torch.ones(1, 5, dtype=torch.bool)

    def denoise(x: Tensor, level: int, is_alone: bool) -> Tensor:
        return net.denoise(x, torch.full((1, 5), level), context, every & is_alone)

    assert trailing(LEVELS, done) == wanted["levels"].tolist()
    end = ddim(denoise, wanted["start"].expand(1, 5, -1), LEVELS, done, guidance, rescale)
    assert torch.allclose(net.denormalise(end)[0, 4], wanted["end"], atol=1e-4)
