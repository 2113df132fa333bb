"""Networks of tokens and of documents with random weights: with the CPU in float32."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pipeline.bench.gpu_check import networks, sampling
from pipeline.bench.gpu_check.check import Check, Figure, needs_precision
from pipeline.bench.gpu_check.inputs import CLASSES
from pipeline.compute import execution
from pipeline.concept import families
from pipeline.concept.loss import squared_error
from pipeline.concept.normaliser import Normaliser
from pipeline.config.model_keys import DecoderKeys, LCMKeys, TwoTowerKeys
from pipeline.flow import mixture_path

CPU = torch.device("cpu")
TOKENS = (
    *("experiment=tiny", "workload=discrete_flow", "model.kind=discrete_unet", "model.values=16"),
    "sample.solver=jump",
)
DIMENSION, SENTENCES, DOCUMENTS, LEVELS = 24, 12, 8, 10
IMAGES = 64  # sampled


class Case(NamedTuple):
    """A network on the CPU, and its output and scalar loss by the network on a device."""

    network: Callable[[], nn.Module]
    outputs: Callable[[nn.Module, torch.device], tuple[Tensor, Tensor]]


# --- tokens --------------------------------------------------------------------------------------


def network_of_tokens() -> nn.Module:
    """The tiny one, with random weights in every layer."""
    return sampling.random_network(TOKENS).eval()


def logits(net: nn.Module, device: torch.device) -> tuple[Tensor, Tensor]:
    """Logits of half-masked tokens (16,3,8,8) and their cross-entropy."""
    generator = torch.Generator().manual_seed(1)
    x1 = torch.randint(16, (16, 3, 8, 8), generator=generator)
    hidden = torch.rand(x1.shape, generator=generator)
    x_t = mixture_path.masked(x1, hidden, torch.tensor(0.8), 3.0, 16).to(device)
    labels = (torch.arange(16) % CLASSES).to(device)
    result = net(x_t, None, labels)
    return result, mixture_path.cross_entropy(result, x1.to(device))


def sampled(device: torch.device) -> Figure:
    """The share of values of the images that are not those of the CPU."""
    with sampling.weights(TOKENS) as path:
        job = sampling.job_of(path, "sample.solver=jump", "sample.divergence_free=symmetric")
        ours, right = (sampling.images(job, where, IMAGES)[0] for where in (device, CPU))
    share = float((ours != right).mean())
    others = int((ours != right).any(axis=(1, 2, 3)).sum())
    return Figure(share, 0.05, "of the values", note=f"{others} of {IMAGES} images differ")


# --- documents -----------------------------------------------------------------------------------


KEYS: dict[str, Any] = {
    "channels": 64, "layers": 2, "heads": 4, "inner_channels": 128, "positions": "rope",
    "norm": "rms", "mlp": "swiglu", "output_bias": True, "dropout": 0.0, "final_dropout": 0.0,
}  # fmt: skip
TOWERS: dict[str, Any] = KEYS | {
    "kind": "lcm_two_tower", "denoiser_layers": 2, "noise_levels": LEVELS, "context_dropout": 0.1,
}  # fmt: skip


def network_of_documents(keys: DecoderKeys) -> nn.Module:
    """A Large Concept Model in small."""
    generator = torch.Generator().manual_seed(0)
    scale = (0.5 + torch.rand(DIMENSION, generator=generator)).numpy()
    net = families.network(keys, Normaliser(scale - 1, scale), SENTENCES)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.2, generator=generator)
    return net.eval()


def predictions(net: nn.Module, device: torch.device) -> tuple[Tensor, Tensor]:
    """Predicted vectors (8,12,24) of documents of 5 to 12 sentences; their error per target."""
    generator = torch.Generator().manual_seed(1)
    vectors = torch.randn(DOCUMENTS, SENTENCES, DIMENSION, generator=generator).to(device)
    lengths = torch.arange(SENTENCES - DOCUMENTS + 1, SENTENCES + 1, device=device)
    result, normalised = net(vectors)
    return result, squared_error(result, normalised, lengths) / (lengths - 1).sum()


def estimates(net: nn.Module, device: torch.device) -> tuple[Tensor, Tensor]:
    """Estimates (8,12,24) of noisy vectors, some without a context; their error per number."""
    generator = torch.Generator().manual_seed(1)
    shape = DOCUMENTS, SENTENCES, DIMENSION
    vectors, normals = torch.randn(2, *shape, generator=generator).to(device)
    levels = (torch.arange(DOCUMENTS * SENTENCES) % LEVELS).view(shape[:2]).to(device)
    signal = 1 - (levels + 1) / LEVELS
    noise = signal, (1 - signal.square()).sqrt(), normals
    result, normalised = net(vectors, noise, levels, levels % 5 == 0)
    return result, (result - normalised).square().mean()


# --- both ----------------------------------------------------------------------------------------

CASES = {
    "tokens": Case(network_of_tokens, logits),
    "documents": Case(partial(network_of_documents, LCMKeys(kind="lcm", **KEYS)), predictions),
    "noisy documents": Case(partial(network_of_documents, TwoTowerKeys(**TOWERS)), estimates),
}


@cache
def exact(name: str) -> networks.Computed:
    """A case in float32 on the CPU."""
    return on_device(name, CPU, "fp32")


def on_device(name: str, device: torch.device, precision: str) -> networks.Computed:
    """Output, loss and gradients as training computes them."""
    execution.set_float32(precision, device)
    net = execution.place(CASES[name].network(), device)
    with execution.autocast(precision, device):
        output, loss = CASES[name].outputs(net, device)
    return networks.computed(net, output, loss, networks.SCALE if precision == "fp16" else 1.0)


def agrees(name: str, precision: str, device: torch.device) -> Figure:
    """A case in one precision against float32 on the CPU."""
    needs_precision(precision, device)
    error, of_what = networks.worst(
        networks.errors(on_device(name, device, precision), exact(name))
    )
    low, high = networks.BOUNDS[precision]
    return Figure(error, high, "relative", low, f"{of_what} is furthest")


CHECKS = (
    *(
        Check(
            f"{name}, {precision}", partial(agrees, name, precision), networks.WHY[precision],
            "a CPU has no TF32" if precision == "tf32" else "",
        )
        for name in CASES
        for precision in networks.PRECISIONS
    ),
    Check(
        "jumps of tokens as on the CPU",
        sampled,
        "a draw within rounding of a threshold makes another image: of 100,000 draws a few",
    ),
)  # fmt: skip
