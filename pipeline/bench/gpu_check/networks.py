"""The fixture networks in every precision, eager and compiled, against float64 on the CPU."""

import json
import math
from collections.abc import Iterator
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.bench import record
from pipeline.bench.gpu_check.check import (
    NOT_COMPILED,
    Check,
    Figure,
    NotApplicable,
    needs_compiler,
    needs_precision,
)
from pipeline.compute import execution
from pipeline.config.model_keys import UNetKeys
from pipeline.flow import probability_path
from pipeline.interop.flow_matching_network import our_state
from pipeline.networks.unet import UNet

FOLDER = record.ROOT / "tests" / "fixtures"  # numbers that public trainers have printed
ORACLE = 1e-4  # within which float32 reaches them on CPUs, too
SCALE = 2.0**10  # of the loss in fp16, so that no gradient is too small for it
SMALL = 0.01  # a gradient below this share of the whole is measured against this share

# Bounds of the largest relative error, of the velocity, the loss and the gradient of each
# parameter, and their reasons. Lower ones show that the precision was used at all.
BOUNDS = {"fp32": (0.0, 3e-4), "tf32": (0.0, 2e-2), "bf16": (1e-3, 0.2), "fp16": (1e-4, 3e-2)}
WHY = {
    "fp32": "fast convolutions are off by 1e-5 each, which makes 1.4e-4 here; TF32 makes 2e-3",
    "tf32": "its products round by 5e-4, as those of fp16",
    "bf16": "its products round by 4e-3; 1e-3 and less would be another precision",
    "fp16": "its products round by 5e-4; 1e-4 and less would be another precision",
}


class Fixture(NamedTuple):
    """A network's weights, and what went in and came out of it elsewhere."""

    model: UNetKeys
    num_classes: int
    arrays: dict[str, np.ndarray]

    def network(self) -> UNet:
        """The network, on the CPU."""
        net = UNet(self.model, self.num_classes).eval()
        names = [name for name in self.arrays if name.startswith("state/")]
        state = {n.removeprefix("state/"): torch.from_numpy(self.arrays[n]) for n in names}
        net.load_state_dict(our_state(state))
        return net


class Computed(NamedTuple):
    """The output of a network for its fixture, float64 on the CPU."""

    output: Tensor  # (B,3,H,W) of x without class
    loss: Tensor  # of x0, x1 at t_train
    gradients: dict[str, Tensor]  # of the loss, by parameter; without those that have none


@cache
def fixture(name: str) -> Fixture:
    """A fixture of tests/; raises NotApplicable if it is not there."""
    path = FOLDER / f"unet_{name}_tiny.npz"
    if not path.exists():
        raise NotApplicable(f"{path} is missing: it belongs to a checkout")
    with np.load(path, allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files}
    arguments = json.loads(str(arrays["config"]))
    return Fixture(model_keys(arguments), arguments["num_classes"] or 10, arrays)


def model_keys(arguments: dict[str, Any]) -> UNetKeys:
    """The section `model` of the arguments that the public trainer gives its network."""
    head_channels = arguments["num_head_channels"]
    return UNetKeys(
        channels=arguments["model_channels"],
        channel_mult=tuple(arguments["channel_mult"]),
        blocks=arguments["num_res_blocks"],
        attention_at=tuple(arguments["attention_resolutions"]),
        head_channels=head_channels if head_channels > 0 else None,
        heads=arguments["num_heads"],
        dropout=arguments["dropout"],
        time_scale=1.0,
        scale_shift_norm=arguments["use_scale_shift_norm"],
        residual_updown=arguments["resblock_updown"],
        conv_resample=arguments.get("conv_resample", True),
        class_conditional=arguments["num_classes"] is not None,
    )


def inputs(given: Fixture, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """x, t, x0, x1 and t_train of a fixture."""
    names = ("x", "t", "x0", "x1", "t_train")
    return {n: torch.from_numpy(given.arrays[n]).to(device, dtype) for n in names}


@cache
def exact(name: str) -> Computed:
    """A fixture in float64 on the CPU."""
    given, cpu = fixture(name), torch.device("cpu")
    net = given.network().double()
    net.time_mlp.register_forward_pre_hook(lambda _, args: (args[0].double(),))
    data = inputs(given, cpu, torch.float64)
    x_t = probability_path.interpolate(data["x0"], data["x1"], data["t_train"])
    velocity = net(data["x"], data["t"], torch.full((len(data["x"]),), given.num_classes))
    loss = (net(x_t, data["t_train"], torch.arange(len(x_t))) - data["x1"] + data["x0"]).square()
    return computed(net, velocity, loss.mean())


def computed(net: nn.Module, output: Tensor, loss: Tensor, scale: float = 1.0) -> Computed:
    """Output, loss and, after a backward pass of the scaled loss, gradients."""
    (loss * scale).backward()
    with_grad = ((name, p.grad) for name, p in net.named_parameters() if p.grad is not None)
    gradients = {name: gradient.cpu().double() / scale for name, gradient in with_grad}
    return Computed(output.detach().cpu().double(), loss.detach().cpu().double(), gradients)


def on_device(
    name: str, device: torch.device, precision: str, compiled: bool, layout: torch.memory_format
) -> Computed:
    """A fixture as training computes it."""
    # Network and inputs
    execution.set_float32(precision, device)
    given = fixture(name)
    net = given.network().to(device).to(memory_format=layout)  # type: ignore[call-overload]
    model = torch.compile(net, dynamic=False) if compiled else net
    data = inputs(given, device, torch.float32)
    labels = torch.arange(len(data["x"]), device=device)
    x_t = probability_path.interpolate(data["x0"], data["x1"], data["t_train"])
    # Two passes of one shape
    with execution.autocast(precision, device):
        x = data["x"].contiguous(memory_format=layout)
        velocity = model(x, data["t"], torch.full_like(labels, given.num_classes))
        x_t = x_t.contiguous(memory_format=layout)
        loss = probability_path.loss(model(x_t, data["t_train"], labels), data["x0"], data["x1"])
    return computed(net, velocity, loss, SCALE if precision == "fp16" else 1.0)


def errors(ours: Computed, right: Computed) -> Iterator[tuple[float, str]]:
    """Relative errors, and of what they are."""
    yield relative(ours.output, right.output), "output"
    yield relative(ours.loss, right.loss), "loss"
    whole = math.sqrt(sum(float(g.square().sum()) for g in right.gradients.values()))
    for name, gradient in right.gradients.items():
        if name not in ours.gradients:
            yield math.inf, f"gradient of {name}, which has none"
            continue
        size = max(float(gradient.norm()), SMALL * whole)
        yield float((ours.gradients[name] - gradient).norm()) / size, f"gradient of {name}"


def relative(value: Tensor, right: Tensor) -> float:
    """Length of the difference over that of `right`."""
    return float((value - right).norm() / right.norm())


def worst(pairs: Iterator[tuple[float, str]]) -> tuple[float, str]:
    """The largest error, NaN before all, and of what it is."""
    return max(pairs, key=lambda pair: (math.isnan(pair[0]), pair[0]))


def agrees(
    name: str,
    precision: str,
    compiled: bool,
    device: torch.device,
    layout: torch.memory_format | None = None,
) -> Figure:
    """A fixture in one precision, by default in the memory format that the device gets."""
    if compiled:
        needs_compiler(device)
    needs_precision(precision, device)
    ours = on_device(name, device, precision, compiled, layout or execution.memory_format(device))
    error, of_what = worst(errors(ours, exact(name)))
    low, high = BOUNDS[precision]
    return Figure(error, high, "relative", low, f"{of_what} is furthest")


def reaches_oracle(name: str, device: torch.device) -> Figure:
    """Velocity, loss and length of the gradient in float32 against what the public trainer gave."""
    given = fixture(name)
    ours = on_device(name, device, "fp32", False, execution.memory_format(device))
    length = math.sqrt(sum(float(g.square().sum()) for g in ours.gradients.values()))
    arrays = {key: float(given.arrays[key]) for key in ("loss", "grad_norm")}
    velocity = torch.from_numpy(given.arrays["v_uncond"]).double()
    pairs = (
        (float((ours.output - velocity).abs().max()), "velocity"),
        (abs(float(ours.loss) / arrays["loss"] - 1), "loss"),
        (abs(length / arrays["grad_norm"] - 1), "length of the gradient"),
    )
    error, of_what = worst(iter(pairs))
    return Figure(error, ORACLE, "", note=f"{of_what} is furthest")


def case(name: str, precision: str, compiled: bool) -> Check:
    """A row of the table."""
    title = f"network {name}, {precision}, {'compiled' if compiled else 'eager'}"
    not_on_cpu = "a CPU has no TF32" if precision == "tf32" else NOT_COMPILED if compiled else ""
    measure = partial(agrees, name, precision, compiled)
    return Check(title, measure, WHY[precision], not_on_cpu)


PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
CHECKS = (
    *(
        Check(f"network {name}, as published", partial(reaches_oracle, name), "as on CPUs")
        for name in ("imagenet", "cifar")
    ),
    *(case(name, precision, False) for name in ("imagenet", "cifar") for precision in PRECISIONS),
    Check(
        "network imagenet, fp32, other memory format",
        partial(agrees, "imagenet", "fp32", False, layout=torch.contiguous_format),
        WHY["fp32"],
        "it is the usual one there",
    ),
    *(case("imagenet", precision, True) for precision in PRECISIONS),
    case("cifar", "bf16", True),
)
