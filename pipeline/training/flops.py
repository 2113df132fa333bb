"""Work of training on an item, and the share of a GPU's peak that a rate amounts to.

Counted are the multiply-adds of convolutions, linear layers and attention, two operations each:
what a peak rate in TFLOP/s is stated for. Norms and activations are not.
"""

import torch
from torch.utils.flop_counter import FlopCounterMode

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

    The pass runs on the meta device, which computes nothing.
    """
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        net = workload.build().eval()
        workload.loss(net, workload.zeros(1, torch.device("meta")))
    return TRAINING * int(counter.get_total_flops())


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
