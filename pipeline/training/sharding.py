"""How the weights of a training run lie on its ranks: whole on each (ddp), or in parts (fsdp2).

Both average the gradients over the ranks, so that they give the same model except for the order
of float sums. A checkpoint holds whole tensors under the same names whatever wrote it: it is read
under any strategy and by any number of ranks. One process alone holds everything itself.
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from pipeline.compute import execution, parts
from pipeline.compute.distributed import Ranks
from pipeline.config.schema import Config

# Passes with an exchange of gradients that DDP needs before the first step. In the first it records
# its static graph; torch asserts if that one is under `accumulating`. The second gives the order of
# the gradients, after which the buckets are filled anew: bucket by bucket the ranks' gradients are
# added in a separate order, which has to be the same in a run that goes on.
REHEARSALS = 2

# Kept for the life of the process: if DDP's reducer is the last to hold a gloo group, torch
# joins the group's thread under the interpreter's lock, which that thread may be waiting for.
_GROUPS: list[Any] = []

Blocks = tuple[type[nn.Module], ...]  # fsdp2 gathers the weights of one of these at a time


def is_sharded(config: Config, group: Ranks) -> bool:
    """Whether each rank holds a part of every weight, its averages and its moments."""
    return config.runtime.strategy == "fsdp2" and group.world > 1


def spread(nets: Iterable[nn.Module], group: Ranks, sharded: bool, blocks: Blocks) -> None:
    """Move networks from the CPU to the device: whole, or this rank's part of each parameter."""
    mesh = init_device_mesh(group.device.type, (group.world,)) if sharded else None
    with execution.room_for_one(group.device):
        for net in nets:
            if mesh is None:
                execution.place(net, group.device)
            else:
                _shard(net, mesh, blocks)


def _shard(net: nn.Module, mesh: DeviceMesh, blocks: Blocks) -> None:
    """Parameters stay float32 and in the plain memory format, which is all that fsdp2 takes."""
    from torch.distributed.fsdp import fully_shard  # slow to import, and seldom needed

    for block in _blocks(net, blocks):
        fully_shard(block, mesh=mesh)
    fully_shard(net, mesh=mesh)


def _blocks(net: nn.Module, kinds: Blocks) -> list[nn.Module]:
    modules = [module for module in net.modules() if isinstance(module, kinds)]
    return [module for module in modules if next(module.parameters(), None) is not None]


def compiled(net: nn.Module, sharded: bool, kinds: Blocks) -> nn.Module:
    """`net` compiled for one size of batch; if it is sharded, block by block.

    The gathering of weights then stays outside of what is compiled.
    """
    # The whole network
    if not sharded:
        whole_net: nn.Module = torch.compile(net, dynamic=False)  # type: ignore[assignment]
        return whole_net
    # Block by block
    blocks = _blocks(net, kinds)
    torch._dynamo.config.recompile_limit = len(blocks)  # all share the code of few classes
    for block in blocks:
        block.forward = torch.compile(block.forward, dynamic=False)
    return net


def keep_group() -> None:
    """Keep the process group for the life of the process: see _GROUPS."""
    _GROUPS.append(dist.group.WORLD)


def parallel(model: nn.Module, group: Ranks) -> nn.Module:
    """`model` whose backward pass averages the gradients over the ranks; it needs REHEARSALS."""
    if group.world == 1 or parts.is_sharded_module(model):
        return model
    keep_group()
    # Every parameter has a gradient in every step: labels are dropped per sample.
    return DistributedDataParallel(model, static_graph=True, gradient_as_bucket_view=True)


def accumulating(model: nn.Module, last: bool) -> AbstractContextManager[Any]:
    """Around a micro-batch: the ranks exchange gradients after the `last` of a step alone."""
    if parts.is_sharded_module(model):
        model.set_requires_gradient_sync(last)  # type: ignore[operator]
    elif isinstance(model, DistributedDataParallel) and not last:
        return model.no_sync()
    return nullcontext()


def total_norm(tensors: Iterable[Tensor]) -> Tensor:
    """Length of all tensors together, a scalar; the same on every rank, which all must ask."""
    return parts.full(nn.utils.get_total_norm([tensor.detach() for tensor in tensors]))


def whole(value: Any, keep: bool) -> Any:
    """A state (tensors in dicts and lists) with every sharded tensor put together.

    These come to host memory one by one if `keep`, else they are None. All ranks must call it.
    """
    if parts.is_part(value):
        full = parts.full(value)
        return full.detach().cpu() if keep else None
    if isinstance(value, dict):
        return {key: whole(item, keep) for key, item in value.items()}
    if isinstance(value, list):
        return [whole(item, keep) for item in value]
    return value


def load_net(net: nn.Module, saved: dict[str, Tensor]) -> None:
    """Set the weights to `saved` whole tensors; a rank takes its parts of them."""
    local = net.state_dict()
    net.load_state_dict({name: _part(value, local.get(name)) for name, value in saved.items()})


def load_optimizer(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Set the optimiser's state to `saved`, which holds whole tensors."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state = {
        index: {name: _laid_out(value, parameters[index]) for name, value in moments.items()}
        for index, moments in saved["state"].items()
    }
    optimizer.load_state_dict({**saved, "state": state})


def _laid_out(value: Tensor, parameter: Tensor) -> Tensor:
    """This rank's part of a moment, in the parameter's memory format.

    A moment is saved in that of the device and the strategy it was made under. AdamW's fused
    kernel goes through the memory of both: of another format it takes the wrong numbers (CPU) or
    raises (CUDA).
    """
    if value.shape != parameter.shape:  # the number of steps
        return value
    return torch.empty_like(parameter).copy_(_part(value, parameter))


def _part(value: Tensor, local: Any) -> Tensor:
    """This rank's part of `value` if `local`, a tensor of the same shape, is sharded."""
    if not parts.is_part(local) or value.shape != local.shape:
        return value
    from torch.distributed.tensor import distribute_tensor  # slow to import, and seldom needed

    return distribute_tensor(value, local.device_mesh, local.placements, src_data_rank=None)
