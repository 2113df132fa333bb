"""Scaled-dot-product attention by each backend that a device has, against float64."""

import re
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from pipeline.bench.gpu_check.check import Check, Figure, NotApplicable, needs_precision
from pipeline.bench.gpu_check.networks import relative

SHAPE = (4, 6, 256, 64)  # images, heads, pixels and channels of a head: `imagenet` at 16 x 16
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
BACKENDS = {
    "math": SDPBackend.MATH,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}
BOUNDS = {"fp32": 5e-5, "bf16": 2e-2, "fp16": 3e-3}
WHY = {
    "fp32": "float32 sums; TF32 would be 5e-4",
    "bf16": "queries, keys, values and weights round by 4e-3",
    "fp16": "queries, keys, values and weights round by 5e-4",
}


def values(device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """Queries, keys, values and the gradient of what they give."""
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(SHAPE, generator=generator) for _ in range(4)]
    return [value.to(device, dtype) for value in drawn]


def results(given: list[Tensor]) -> list[Tensor]:
    """Attention and its gradients, float64 on the CPU."""
    q, k, v = (value.clone().requires_grad_() for value in given[:3])
    out = F.scaled_dot_product_attention(q, k, v)
    return [
        value.cpu().double()
        for value in (out.detach(), *torch.autograd.grad(out, (q, k, v), given[3]))
    ]


def agrees(backend: str, precision: str, device: torch.device) -> Figure:
    """One backend in one precision; raises NotApplicable if it does not take it."""
    needs_precision(precision, device)
    torch.backends.cuda.matmul.allow_tf32 = False
    given = values(device, DTYPES[precision])
    exact = results([value.cpu().double() for value in values(torch.device("cpu"), torch.float32)])
    try:
        with sdpa_kernel(BACKENDS[backend]):
            ours = results(given)
    except RuntimeError as error:
        if re.search(r"no (available kernel|viable backend)", str(error), re.I):
            raise NotApplicable(f"{backend} attention does not take {precision} here") from error
        raise
    error_size = max(relative(a, b) for a, b in zip(ours, exact, strict=True))
    return Figure(error_size, BOUNDS[precision], "relative")


CHECKS = tuple(
    Check(
        f"attention by {backend}, {precision}", partial(agrees, backend, precision), WHY[precision]
    )
    for backend in BACKENDS
    for precision in DTYPES
)
