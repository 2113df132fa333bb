"""Memory of a training step by the size of its micro-batch, from a pass that computes nothing.

The pass runs eagerly on fake tensors, which have shapes and types and no values, so that a network
of any size can be asked on any machine. What a backward pass needs for a moment is not counted: on
the CPU up to a quarter more. A compiled pass keeps less: it makes some of it anew.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from pipeline.compute import execution
from pipeline.config.schema import Config
from pipeline.training.workload import Workload

WEIGHTS, GRADIENT, MOMENTS = 1, 1, 2  # float32 numbers that a parameter keeps


@dataclass(frozen=True)
class StepMemory:
    """Bytes that training keeps on a device, and those of a pass by its number of items."""

    # Between the passes
    state: int  # weights, gradients, moments of AdamW, averages with their remainders
    # For the backward pass
    fixed: int  # of any number of items: weights in the precision of autocast
    item: int  # of each item more: activations

    def peak(self, items: int) -> int:
        """Bytes when the forward pass over so many items ends, gradients of earlier ones there."""
        return self.state + self.fixed + items * self.item

    def largest(self, limit: int) -> int:
        """The largest number of items whose peak is at most `limit` bytes; 0 if there is none."""
        return max(0, (limit - self.state - self.fixed) // self.item)


def step_memory(config: Config, workload: Workload, device: torch.device) -> StepMemory:
    """The memory of a step of `config`; `device` says how autocast works, and may be absent."""
    # A straight line through two sizes
    precision = config.train.precision
    first, second = (kept_bytes(workload, precision, n, device) for n in (1, 2))
    # Numbers of a parameter
    with torch.device("meta"):
        weights = sum(parameter.nbytes for parameter in workload.build().parameters())
    state = (WEIGHTS + GRADIENT + MOMENTS + config.train.num_average_copies) * weights
    return StepMemory(state, first - (second - first), second - first)


def kept_bytes(workload: Workload, precision: str, items: int, device: torch.device) -> int:
    """Bytes that a forward pass over `items` items keeps for its backward pass, weights aside."""
    kept: dict[int, int] = {}
    alive: list[Tensor] = []  # so that no address is used twice

    def count(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        kept[storage._cdata] = storage.nbytes()
        alive.append(value)
        return value

    with FakeTensorMode(), torch.device(device):
        net: nn.Module = workload.build()
        batch = workload.zeros(items, device)
        hooks = torch.autograd.graph.saved_tensors_hooks(count, lambda value: value)
        with hooks, execution.autocast(precision, device):
            workload.loss(net, batch)
        weights = {parameter.untyped_storage()._cdata for parameter in net.parameters()}
    return sum(size for address, size in kept.items() if address not in weights)
