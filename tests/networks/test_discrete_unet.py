"""The network of tokens against numbers printed by the public reference trainer."""

import pytest
import torch

from pipeline.flow import mixture_path
from pipeline.networks.discrete_unet import DiscreteUNet
from tests import discrete
from tests.conftest import resolved


def test_logits_losses_and_gradient_equal_the_reference() -> None:
    net, data = discrete.reference()
    x_t = mixture_path.masked(data["x1"], data["uniform"], data["t"].view(-1, 1, 1, 1), 3.0, 16)
    assert torch.equal(x_t, data["x_t"])
    logits = net(x_t, None, data["labels"])
    torch.testing.assert_close(logits, data["logits"], atol=1e-4, rtol=0)
    loss = mixture_path.cross_entropy(logits, data["x1"])
    assert loss.item() == pytest.approx(data["cross_entropy"], rel=1e-6)
    t = data["t"].view(-1, 1, 1, 1)
    divergence = mixture_path.generalised_kl(logits, data["x1"], x_t, t, 3.0)
    assert divergence.item() == pytest.approx(data["generalized_kl"], rel=1e-5)
    loss.backward()
    gradients = [parameter.grad for parameter in net.parameters()]
    norm = torch.nn.utils.get_total_norm([g for g in gradients if g is not None])
    assert len(gradients) == len(discrete.peer_state(data)) and None not in gradients
    assert norm.item() == pytest.approx(data["grad_norm"], rel=1e-5)


@pytest.mark.parametrize("word", ["model.class_conditional=false", "model.channel_mult=[2,1]"])
def test_all_tokens_are_alike_at_the_start(word: str) -> None:
    config = resolved("experiment=tiny", *discrete.WORDS, "model.attention_at=[2]", word)
    net = DiscreteUNet(config.model, 10)
    tokens = torch.randint(0, 17, (2, 3, 8, 8))
    logits = net(tokens, torch.rand(2), torch.tensor([0, 10]))
    assert logits.shape == (2, 3, 8, 8, 17) and not logits.any()


def test_the_published_network_has_a_table_and_no_time() -> None:
    with torch.device("meta"):
        net = DiscreteUNet(resolved("experiment=cifar10_discrete").model, 10)
    names = {name.partition(".")[0] for name in net.state_dict()}
    assert names == {"token_embedding", "encoder", "middle", "decoder", "out_norm", "out_conv"}
    assert net.token_embedding.weight.shape == (257, 32)
    assert net.out_conv.weight.shape == (3 * 257, 288, 3, 3)


@pytest.mark.parametrize(("channels", "numbers"), [(32, 32), (96, 32), (128, 64), (192, 64)])
def test_a_token_has_a_third_of_the_channels_or_somewhat_more(channels: int, numbers: int) -> None:
    words = (*discrete.WORDS, f"model.channels={channels}")
    with torch.device("meta"):
        net = DiscreteUNet(resolved("experiment=tiny", *words).model, 10)
    assert net.token_embedding.weight.shape == (17, numbers)
    assert net.encoder[0][0].conv1.weight.shape[:2] == (channels, 3 * numbers)


def test_gradients_lie_in_memory_as_their_parameters_do() -> None:
    """DDP copies, and warns, if they do not; convolutions take time to turn them."""
    net = DiscreteUNet(resolved("experiment=tiny", *discrete.WORDS).model, 10)
    torch.nn.init.normal_(net.out_conv.weight)  # else there are no gradients
    logits = net(torch.randint(17, (2, 3, 8, 8)), None, torch.tensor([0, 10]))
    loss = mixture_path.cross_entropy(logits, torch.zeros(2, 3, 8, 8, dtype=torch.int64))
    parameters = [*net.parameters()]
    for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
        assert gradient.stride() == parameter.stride()
