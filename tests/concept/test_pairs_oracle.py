"""The losses of pairs against numbers of LCM's own fine-tuning (commit fd7db80).

fixtures/lcm_pairs_tiny.npz: LCM's criteria `target_mse` and `two_tower_diffusion_next_sent_
finetuning` (fairseq2 0.3.0, torch 2.5.1, float32, CPU) on the networks and documents of
lcm_mse_tiny.npz and lcm_two_tower_tiny.npz, whose first `prompts` sentences are the source and
whose others are the target. `grad/NAME` are norm and sum of each parameter's gradient. Noise,
levels and sentences without a context are those of the targets, padded on the right.
"""

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.concept.loss import denoising_error, squared_error
from pipeline.concept.noise import noise_of, signals
from tests.concept import oracle
from tests.concept import test_two_tower_oracle as towers
from tests.conftest import ROOT

FILE = ROOT / "tests" / "fixtures" / "lcm_pairs_tiny.npz"
VARIANTS = ("a", "b")


def arrays(prefix: str) -> dict[str, np.ndarray]:
    """The arrays whose keys begin with `prefix`, which is taken off."""
    with np.load(FILE) as file:
        return {key[len(prefix) :]: file[key] for key in file.files if key.startswith(prefix)}


def check_gradients(
    net: nn.Module, theirs: Mapping[str, np.ndarray], total: np.ndarray, tolerance: float
) -> None:
    """Compare norm and sum of each gradient, which are given by our names."""
    ours = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    assert set(theirs) == set(ours)
    for name, (norm, summed) in theirs.items():
        assert float(ours[name].norm()) == pytest.approx(norm, rel=tolerance, abs=1e-4), name
        bound = tolerance * float(ours[name].abs().sum()) + 1e-4
        assert float(ours[name].sum()) == pytest.approx(summed, abs=bound), name
    norm = float(nn.utils.get_total_norm(ours.values()))
    assert norm == pytest.approx(float(total), rel=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_loss_of_a_regression_is_theirs(variant: str) -> None:
    wanted, net = arrays(f"mse/{variant}/"), oracle.network(variant)
    prompts, (vectors, lengths) = torch.from_numpy(arrays("mse/")["prompts"]), oracle.documents()
    loss = squared_error(*net(vectors), lengths, prompts)
    assert int((lengths - prompts).sum()) == wanted["num_targets"]
    assert float(loss.detach()) == pytest.approx(float(wanted["loss"]), rel=1e-6)
    loss.backward()
    theirs = {oracle.our_name(k): v for k, v in arrays(f"mse/{variant}/grad/").items()}
    check_gradients(net, theirs, wanted["grad_norm"], 1e-5)


def at_targets(values: np.ndarray, prompts: Tensor, longest: int) -> Tensor:
    """Values (B,S,…) of targets at their places (B,longest,…) in the documents, and zeros."""
    result = torch.zeros(len(prompts), longest, *values.shape[2:], dtype=torch.tensor(values).dtype)
    for row, (value, prompt) in enumerate(zip(values, prompts.tolist(), strict=True)):
        num = min(longest - prompt, len(value))
        result[row, prompt : prompt + num] = torch.from_numpy(value[:num])
    return result


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_loss_of_denoising_is_theirs(variant: str) -> None:
    """Their denoiser gets the targets alone; ours all sentences, of which targets count."""
    wanted, net = arrays(f"two_tower/{variant}/"), towers.network(variant)
    prompts = torch.from_numpy(arrays("two_tower/")["prompts"])
    vectors, lengths = towers.documents()
    parts = [wanted[name] for name in ("levels", "alone", "noise", "output")]
    levels, alone, normals, output = (at_targets(x, prompts, vectors.shape[1]) for x in parts)
    signal = signals(towers.LEVELS)
    noise = signal.float()[levels], noise_of(signal).float()[levels], normals
    estimates, true = net(vectors, noise, levels, alone)

    # Estimates of targets
    places = torch.arange(vectors.shape[1])
    is_target = (places >= prompts[:, None]) & (places < lengths[:, None])
    assert alone[is_target].any() and not alone[is_target].all()
    assert torch.allclose(estimates[is_target], output[is_target], atol=1e-5)

    # Loss and gradients
    loss = denoising_error(estimates, true, lengths, prompts)
    assert int(is_target.sum()) == wanted["num_targets"]
    assert float(loss.detach()) == pytest.approx(float(wanted["loss"]), rel=1e-5)
    loss.backward()
    theirs = {
        towers.our_name(name): value
        for name, value in arrays(f"two_tower/{variant}/grad/").items()
        if name not in towers.NOT_OURS
    }
    check_gradients(net, theirs, wanted["grad_norm"], 1e-4)
