"""Work of training on an item, and the share of a GPU's peak that a rate amounts to.

Counted are the multiply-adds of convolutions, linear layers and attention, two operations each:
what a peak rate in TFLOP/s is stated for. Norms and activations are not.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from pipeline.training.workload import Workload

TRAINING = 3  # a forward pass, and twice its work for the gradients of inputs and of weights

# Dense TFLOP/s of matrix products with bf16 inputs (V100: fp16) and float32 sums, by words of the
# device's name, the first that fit. Sources: NVIDIA's data sheet of each product (half of what it
# states with sparsity; SXM if nothing else is said); GeForce: appendix of NVIDIA's whitepapers
# on the Ampere GA102 and Ada architectures, "FP16 Tensor with FP32 Accumulate".
PEAKS = {
    "GB200": 2500.0, "B200": 2250.0,
    "H200 NVL": 835.0, "H200": 989.0,
    "H100 PCIe": 756.0, "H100 NVL": 835.0, "H100": 989.0,
    "A100": 312.0, "A40": 150.0, "A30": 165.0, "A10": 125.0,
    "L40S": 362.0, "L40": 181.0, "L4": 121.0,
    "RTX 4090": 165.0, "RTX 3090": 71.0,
    "V100": 125.0,
}  # fmt: skip


def training_flops(workload: Workload) -> int:
    """Floating-point operations of training on one item: of one counted forward pass, times 3.

    The pass runs on the meta device, which computes shapes alone.
    """
    with torch.device("meta"), torch.no_grad(), Counter() as counter:
        net = workload.build().eval()
        workload.loss(net, workload.zeros(1, torch.device("meta")))
    return TRAINING * 2 * counter.multiply_adds


class Counter(TorchFunctionMode):
    """Counts the multiply-adds of the operators that are called on the meta device.

    torch.utils.flop_counter finds the same, in two to four times as long: it looks at the parts
    of each operator, and the meta device takes some of them apart in Python.
    """

    def __init__(self) -> None:
        super().__init__()
        self.multiply_adds = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = SHAPES.get(func, func)(*args, **(kwargs or {}))
        if count := COUNTED.get(func):
            self.multiply_adds += count(output, *args, **(kwargs or {}))
        return output


def of_layer(output: Tensor, input: Tensor, weight: Tensor, *_: Any, **__: Any) -> int:
    """Of a linear layer or a convolution: each output takes a row of the weight (out, ...)."""
    return output.numel() * weight[0].numel()


def of_attention(
    output: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any
) -> int:
    """Of queries (..., T, D), keys (..., S, D) and values (..., S, E): T S (D + E)."""
    return query[..., 0].numel() * key.shape[-2] * (query.shape[-1] + value.shape[-1])


def attended(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
    """A tensor of the shape (..., T, E) that attention gives."""
    return query.new_empty(*query.shape[:-1], value.shape[-1])


def reduced(tensor: Tensor, *_: Any, dim: tuple[int, ...], keepdim: bool, **__: Any) -> Tensor:
    """A tensor of the shape of a norm over these dimensions."""
    return tensor.amax(dim, keepdim=keepdim)


def unchanged(tensor: Tensor, *_: Any, **__: Any) -> Tensor:
    """The tensor, whose shape is that of the result."""
    return tensor


COUNTED: dict[Any, Callable[..., int]] = {
    F.linear: of_layer, torch.conv2d: of_layer, F.scaled_dot_product_attention: of_attention,
}  # fmt: skip
# In place of operators that the meta device takes apart in Python
SHAPES: dict[Any, Callable[..., Tensor]] = {
    F.scaled_dot_product_attention: attended, F.group_norm: unchanged, F.hardtanh: unchanged,
    torch.linalg.vector_norm: reduced,
    nn.init.normal_: unchanged, nn.init.kaiming_uniform_: unchanged, nn.init.uniform_: unchanged,
}  # fmt: skip


def peak(name: str) -> float | None:
    """Dense bf16 peak in TFLOP/s of the device called `name`; None if it is not known."""
    words = f" {name.replace('-', ' ')} "
    if " MIG " in words:  # a part of a GPU
        return None
    return next((tflops for model, tflops in PEAKS.items() if f" {model} " in words), None)


def mfu(images_per_s_per_gpu: float, flops: float, name: str) -> float | None:
    """Model FLOP utilisation (Chowdhery et al. 2022): operations a second over the peak.

    `flops`: of one training image. None if the peak of the device `name` is not known.
    """
    most = peak(name)
    return None if most is None else images_per_s_per_gpu * flops / (most * 1e12)
