"""Jumps of tokens: rates of the public reference, exact distributions, draws by position."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from pipeline import sample
from pipeline.base.errors import UserError
from pipeline.config.model_keys import read_model
from pipeline.sampling import jumps
from pipeline.sampling.jumps import Jumps
from tests import discrete
from tests.conftest import resolved
from tests.on_ranks import on_ranks
from tests.random_networks import save_network

MODEL = {"kind": "discrete_unet", "channels": 96, "channel_mult": [1], "attention_at": [],
         "values": 16}  # fmt: skip
SAMPLE = ["experiment=tiny", "sample.num=9", "sample.solver=jump", "sample.steps=6",
          "runtime.device=cpu", "runtime.progress_seconds=1000"]  # fmt: skip


# --- one step ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "c"), [("none", "none"), ("two", 2.0), ("symmetric",) * 2])
def test_rates_and_jump_probabilities_equal_the_reference(name: str, c: str | float) -> None:
    data = discrete.arrays("solver")
    for k, t in enumerate(data["t"].double().tolist()):
        if name == "two" and t == 0:
            continue  # 0/0 there; here no mask goes back to the mask
        x, x1 = data["x_t"][k], data["x1"][k]
        forth, back = jumps.rates(x, x1, t, 3.0, jumps.divergence_free(c, t), 16)
        whole = torch.zeros(len(x), 17, dtype=torch.float64)
        whole.scatter_(1, x1[:, None], forth[:, None])
        whole[:, 16] += back
        torch.testing.assert_close(
            whole, data[f"rates_{name}"][k].double(), rtol=2e-5 if t > 0.99 else 1e-6, atol=1e-6
        )
        probability = jumps.jump_probability(forth, back, data["step"])
        torch.testing.assert_close(probability, data[f"jump_{name}"][k].double(), rtol=0, atol=1e-6)


@given(st.floats(0.01, 0.999), st.floats(0.2, 5), st.sampled_from(["none", "symmetric", 0.5]))
def test_the_path_keeps_its_masks(t: float, n: float, kind: str | float) -> None:
    """Whatever c(t): the flow between masks and values is d kappa / dt, the corrections cancel."""
    c = jumps.divergence_free(kind, t)
    mask, value = torch.tensor([16]), torch.tensor([3])
    forth, _ = jumps.rates(mask, value, t, n, c, 16)
    _, back = jumps.rates(value, value, t, n, c, 16)
    kappa = t**n
    net = (1 - kappa) * float(forth) - kappa * float(back)
    assert net == pytest.approx(n * t ** (n - 1), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_are_drawn_as_often_as_they_are_likely(dtype: torch.dtype) -> None:
    logits = torch.tensor([-40.0, 0.0, 1.0, -90.0, 2.0, -50.0])
    share = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    drawn = jumps.drawn(logits.expand(len(share), -1), share, dtype)
    counts = torch.bincount(drawn, minlength=6) / len(share)
    torch.testing.assert_close(counts, logits.softmax(0), atol=2e-5, rtol=0)
    ends = torch.tensor([2.0**-53, 1 - 2.0**-53], dtype=torch.float64)
    first, last = jumps.drawn(torch.tensor([-200.0, 0.0, 1.0, -200.0]).expand(2, -1), ends, dtype)
    assert (first, last) == (1, 2)  # none that is impossible


# --- whole images --------------------------------------------------------------------------------


class Known(nn.Module):
    """Predicts one distribution for every hidden value, and open ones as they are."""

    logits = torch.tensor([0.0, 1.0, 2.0, 0.5] + 12 * [-50.0] + [-50.0])

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        is_open = nn.functional.one_hot(x, 17) * 100.0
        hidden = self.logits + labels.view(-1, 1, 1, 1, 1) * torch.arange(17) / 20
        return torch.where((x == 16).unsqueeze(-1), hidden, is_open)


class Remembers(nn.Module):
    """p(x1 | x_t) of a data set of a few images: of those that agree with what is open."""

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        self.images = images  # (K,3,H,W)

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        disagrees = (x[:, None] != self.images) & (x[:, None] != 16)  # (B,K,3,H,W)
        share = (-50.0 * disagrees.flatten(2).sum(-1)).softmax(-1)
        of_values = nn.functional.one_hot(self.images, 17).float()
        return (torch.einsum("bk,kchwv->bchwv", share, of_values) + 1e-9).log()


def process(num: int, *words: str, labels: int = 0, net: nn.Module | None = None) -> Jumps:
    config = resolved("experiment=tiny", *discrete.WORDS, "sample.guidance=1", *words)
    label, model = torch.full((num,), labels), read_model(config.model.model_dump())
    networks = (net or Known(), None)
    return Jumps(config.sample, networks, label, 10, model, 3.0, 5, torch.arange(num))


@pytest.mark.parametrize("kind", ["none", "symmetric", "0.5"])
def test_samples_have_the_distribution_that_is_predicted(kind: str) -> None:
    chain = process(300, f"sample.divergence_free={kind}")
    times = torch.linspace(0, 1, 33, dtype=torch.float64)
    half = chain.solve(chain.start(8), times[:17])
    kappa = 0.5**3
    share = float((half != 16).double().mean())
    assert share == pytest.approx(kappa, abs=0.02)  # of Euler's steps, and of 57,600 draws
    end = chain.solve(half, times[16:])
    counts = torch.bincount(end.flatten(), minlength=17) / end.numel()
    torch.testing.assert_close(counts, Known.logits.softmax(0), atol=0.01, rtol=0)
    assert chain.steps == 32 and (chain.evaluations == 32).all()


@pytest.mark.parametrize("kind", ["none", "symmetric"])
def test_a_network_that_knows_the_images_draws_whole_ones(kind: str) -> None:
    """Of dependent values too: with the exact prediction samples are the data set, evenly."""
    images = torch.randint(16, (4, 3, 4, 4), generator=torch.Generator().manual_seed(0))
    chain = process(400, f"sample.divergence_free={kind}", net=Remembers(images))
    end = chain.solve(chain.start(4), torch.linspace(0, 1, 129, dtype=torch.float64))
    equal = (end[:, None] == images).flatten(2).all(-1)  # (400,4)
    assert equal.any(-1).double().mean() > 0.9  # two first values may open in one step
    assert equal.double().mean(0).sub(0.25).abs().max() < 0.1  # 4.6 standard deviations


def test_guidance_and_temperature_change_logits() -> None:
    chain = process(2, "sample.guidance=3", "sample.temperature=0.5", labels=4)
    x = chain.start(8)
    logits = chain(x, torch.zeros(2), torch.arange(2))
    label = torch.full((2,), 10 + 3 * (4 - 10))
    torch.testing.assert_close(logits, Known()(x, torch.zeros(2), label))
    assert (chain.evaluations == 2).all()
    part = process(1, "sample.guidance=3", "sample.guidance_interval=[0.3,0.7]", labels=4)
    for t in (0.0, 0.5, 0.9):
        part(chain.start(8)[:1], torch.tensor([t]), torch.arange(1))
    assert part.evaluations == 4


def test_networks_that_failed_are_refused() -> None:
    chain = process(1)
    chain.net.logits = torch.full((17,), torch.nan)
    with pytest.raises(ArithmeticError, match="logits are not finite"):
        chain.solve(chain.start(8), torch.tensor([0.0, 0.5], dtype=torch.float64))


# --- the step ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_network(tmp_path_factory.mktemp("tokens") / "weights.safetensors", **MODEL)


def run(weights: Path, out: Path, *more: str) -> tuple[np.ndarray, dict]:
    sample.main([*SAMPLE, f"weights={weights}", f"out={out}", *more])
    return np.load(out / "images.npy"), json.loads((out / "sample.json").read_text())


WORDS = ("sample.divergence_free=symmetric", "sample.guidance=2")


def test_an_image_does_not_know_its_batch(weights: Path, tmp_path: Path) -> None:
    whole, about = run(weights, tmp_path / "a", *WORDS)
    assert about["sampler"] == "jump-6-symmetric-g2" and about["nfe_mean"] == 12
    assert whole.shape == (9, 8, 8, 3) and set(np.unique(whole)) <= {*range(8, 256, 16)}
    for size in (1, 4):
        parts, _ = run(weights, tmp_path / str(size), *WORDS, f"runtime.sample_batch={size}")
        assert (parts == whole).mean() >= 0.999
    other, _ = run(weights, tmp_path / "seed", *WORDS, "seed=1")
    assert (other != whole).mean() > 0.5
    names = {path.name for path in (tmp_path / "a").iterdir()}
    assert names >= {"images.npy", "labels.npy", "grid.png", "strip.png", "sample.json",
                     "config.json"}  # fmt: skip


@pytest.mark.slow
def test_ranks_make_the_same_bytes(weights: Path, tmp_path: Path) -> None:
    words = [*SAMPLE, *WORDS, f"weights={weights}", "runtime.sample_batch=4"]
    run(weights, tmp_path / "1", *words)
    on_ranks(2, "pipeline.sample", *words, f"out={tmp_path / '2'}")
    for name in ("images.npy", "labels.npy", "strip.png"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


def test_float64_draws_the_same_but_for_rounding(weights: Path, tmp_path: Path) -> None:
    single, _ = run(weights, tmp_path / "a")
    double, about = run(weights, tmp_path / "b", "sample.categorical=float64")
    assert (single == double).mean() >= 0.999 and about["sampler"] == "jump-6-float64-g2"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["sample.solver=euler"], "solver=euler is not possible, since the network is one of tok"),
        (["sample.grid=edm"], "sample.grid=edm is not possible with sample.solver=jump"),
        (["sample.grid=[0.5,1]"], r"sample.grid=\[0.5, 1.0\] is not possible"),
        (["sample.divergence_free=much"], "sample.divergence_free='much' is not valid"),
    ],
)
def test_samplers_that_do_not_fit_are_refused(
    weights: Path, tmp_path: Path, words: list[str], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        sample.main([*SAMPLE, f"weights={weights}", f"out={tmp_path}", *words])


def test_a_guide_is_of_the_same_tokens(weights: Path, tmp_path: Path) -> None:
    coarse = save_network(tmp_path / "coarse.safetensors", **(MODEL | {"values": 8}))
    velocities = save_network(tmp_path / "velocities.safetensors")
    for guide in (coarse, velocities):
        with pytest.raises(UserError, match="give weights of one kind"):
            run(weights, tmp_path / "out", f"sample.guide={guide}")
    same = save_network(tmp_path / "same.safetensors", seed=1, **MODEL)
    assert run(weights, tmp_path / "out", f"sample.guide={same}")[1]["nfe_mean"] == 12
