"""The network, its loss and four steps of AdamW against the Large Concept Model's trainer."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pipeline.base.errors import UserError
from pipeline.concept.loss import squared_error, targets
from pipeline.concept.network import LCM, rotated
from pipeline.concept.normaliser import Normaliser
from tests.concept import oracle

TARGETS = 14


def near(ours: Tensor, theirs: Tensor, tolerance: float) -> bool:
    return float((ours - theirs).detach().abs().max()) <= tolerance


def gradients(net: LCM) -> dict[str, Tensor]:
    return {name: p.grad for name, p in net.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("variant", oracle.VARIANTS)
def test_predictions_are_theirs(variant: str) -> None:
    wanted = oracle.arrays(f"{variant}/")
    net, (vectors, lengths) = oracle.network(variant), oracle.documents()
    predicted, normalised = net(vectors)
    real = torch.arange(7) < lengths[:, None]
    assert near(normalised, torch.from_numpy(wanted["normalized_input"]), 3e-6)
    assert torch.equal(
        targets(lengths, torch.ones_like(lengths), 7), torch.from_numpy(wanted["target_mask"])
    )
    assert near(predicted[real], torch.from_numpy(wanted["output"])[real], 3e-6)
    denormalised = torch.from_numpy(wanted["denormalized_output"])[real]
    assert near(net.denormalise(predicted)[real], denormalised, 3e-6 * float(net.scale.max()))


@pytest.mark.parametrize("variant", oracle.VARIANTS)
def test_losses_gradients_norms_and_four_steps_are_theirs(variant: str) -> None:
    wanted, steps = oracle.arrays(f"{variant}/"), 4
    net, (vectors, lengths) = oracle.network(variant), oracle.documents()
    optimizer = torch.optim.AdamW(
        net.parameters(), lr=4e-4, betas=(0.9, 0.95), eps=1e-5, weight_decay=0.1
    )
    for step in range(steps):
        loss = squared_error(*net(vectors), lengths)
        assert float(loss.detach()) == pytest.approx(wanted["loss_sum"][step], rel=1e-6)
        optimizer.zero_grad()
        (raw,) = [nn.utils.get_total_norm(torch.autograd.grad(loss, [*net.parameters()]))]
        assert float(raw) == pytest.approx(wanted["raw_grad_norm"][step], rel=4e-5)
        (squared_error(*net(vectors), lengths) / TARGETS).backward()
        if step == 0:
            for name, theirs in oracle.tensors(f"{variant}/grad/").items():
                assert near(gradients(net)[name], theirs, 3e-5), name
        norm = nn.utils.clip_grad_norm_(net.parameters(), 25.0)
        assert float(norm) == pytest.approx(wanted["grad_norm"][step], rel=4e-5)
        optimizer.step()
    weights = net.state_dict()
    for name, theirs in oracle.tensors(f"{variant}/weight_after_4_steps/").items():
        assert near(weights[name], theirs, 3e-5), name


def test_the_recipe_has_1649_million_parameters() -> None:
    keys = oracle.VARIANTS["a"].model_copy(
        update={"channels": 2048, "layers": 32, "heads": 16, "inner_channels": 5632}
    )
    with torch.device("meta"):
        net = LCM(keys, Normaliser(*np.ones((2, 1024))), 128)
    attention, mlp = 4 * (2048 + 1) * 2048, 2 * (2048 + 1) * 5632 + (5632 + 1) * 2048
    ends = (1024 + 1) * 2048 + (2048 + 1) * 1024
    total = 32 * (attention + mlp + 2 * 2048) + 2048 + ends
    assert sum(p.numel() for p in net.parameters()) == total == 1_649_185_792


@settings(max_examples=20)
@given(st.sampled_from(["a", "b"]), st.integers(1, 6), st.integers(0, 6), st.floats(-9, 9))
def test_no_sentence_sees_what_comes_later(
    variant: str, length: int, more: int, value: float
) -> None:
    """Neither later sentences nor padding, whatever there is of it."""
    net, vectors = oracle.network(variant).eval(), oracle.documents().vectors[:1]
    alone = net(vectors[:, :length])[0]
    changed = torch.cat([vectors[:, :length], torch.full((1, more, 24), value)], dim=1)
    assert near(net(changed)[0][:, :length], alone, 1e-5)


def test_dropout_is_by_the_document_and_not_by_the_padding() -> None:
    keys = oracle.VARIANTS["a"].model_copy(update={"dropout": 0.3, "final_dropout": 0.3})
    torch.manual_seed(0)
    net = LCM(keys, oracle.normaliser(), oracle.MAX_SENTENCES)
    vectors = oracle.documents().vectors
    words = torch.tensor([[1, 2], [3, 4], [5, 6], [7, 8]], dtype=torch.int32)
    together = net(vectors, words)[0]
    assert near(net(vectors[1:2, :4], words[1:2])[0], together[1:2, :4], 1e-5)
    assert not near(net(vectors, words.flip(0))[0], together, 1e-2)
    assert near(net.eval()(vectors, words)[0], net(vectors)[0], 0.0)


def test_rotations_turn_planes_by_the_distance_alone() -> None:
    """The product of a query and a key depends on how far they lie apart."""
    query, key = torch.randn(2, 1, 1, 1, 8, generator=torch.Generator().manual_seed(3))
    products = rotated(query.expand(1, 1, 9, 8)) @ rotated(key.expand(1, 1, 9, 8)).mT
    assert near(products[0, 0, 1:, 1:], products[0, 0, :-1, :-1], 1e-5)
    assert not near(products[0, 0, 0], products[0, 0, 0, :1].expand(9), 1e-2)


@pytest.mark.parametrize(
    ("heads", "positions", "message"),
    [(3, "learned", "the 32 channels"), (32, "rope", "the 16 pairs of channels")],
)
def test_heads_must_divide_the_width(heads: int, positions: str, message: str) -> None:
    keys = oracle.VARIANTS["a"].model_copy(update={"heads": heads, "positions": positions})
    with pytest.raises(UserError, match=f"model.heads={heads} does not divide {message}"):
        keys.check(64)
