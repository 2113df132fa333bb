"""Numbers of the Large Concept Model's own trainer, and its weights under our names."""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.concept.network import LCM
from pipeline.concept.normaliser import Normaliser
from pipeline.config.model_keys import LCMKeys
from tests.conftest import ROOT

FILE = ROOT / "tests" / "fixtures" / "lcm_mse_tiny.npz"
MAX_SENTENCES = 16
SHAPE: dict[str, Any] = {
    "kind": "lcm", "channels": 32, "layers": 2, "heads": 4, "dropout": 0.0, "final_dropout": 0.0,
}  # fmt: skip
VARIANTS = {
    "a": LCMKeys(
        **SHAPE, inner_channels=256, positions="rope", norm="rms", mlp="swiglu", output_bias=True
    ),
    "b": LCMKeys(
        **SHAPE, inner_channels=96, positions="learned", norm="layer", mlp="relu", output_bias=False
    ),
}
# Parts of their names and of ours
NAMES = {
    "frontend.pre_linear": "input",
    "frontend.pos_encoder.weight": "positions",
    "lcm.layers": "layers",
    "lcm.layer_norm": "norm",
    "self_attn_layer_norm": "attention_norm",
    "self_attn": "attention",
    "q_proj": "query",
    "k_proj": "key",
    "v_proj": "value",
    "output_proj": "output",
    "ffn_layer_norm": "mlp_norm",
    "ffn": "mlp",
    "gate_proj": "gate",
    "inner_proj": "inner",
    "postnet.fc": "output",
}


class Documents(NamedTuple):
    """Raw vectors (B,T,D) padded with zeros, and lengths (B,)."""

    vectors: Tensor
    lengths: Tensor


def arrays(prefix: str) -> dict[str, np.ndarray]:
    """The arrays whose keys begin with `prefix`, which is taken off."""
    with np.load(FILE) as file:
        return {key[len(prefix) :]: file[key] for key in file.files if key.startswith(prefix)}


def our_name(theirs: str) -> str:
    for part, ours in NAMES.items():
        theirs = theirs.replace(part, ours)
    return theirs


def tensors(prefix: str) -> dict[str, Tensor]:
    """Their tensors by our names."""
    return {our_name(name): torch.from_numpy(value) for name, value in arrays(prefix).items()}


def normaliser() -> Normaliser:
    parts = arrays("normalizer/")
    return Normaliser(parts["center"], parts["scale"])


def network(variant: str) -> LCM:
    """The network of a variant with the oracle's weights."""
    net = LCM(VARIANTS[variant], normaliser(), MAX_SENTENCES)
    buffers = dict(net.named_buffers())
    net.load_state_dict({**tensors(f"{variant}/weight/"), **buffers})
    return net


def documents() -> Documents:
    parts = [torch.from_numpy(part) for part in arrays("docs/").values()]
    vectors = torch.nn.utils.rnn.pad_sequence(parts, batch_first=True)
    return Documents(vectors, torch.tensor([len(part) for part in parts]))
