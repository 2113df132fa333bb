"""Weights in parts (fsdp2) on one rank, and what that rank exchanges, against weights in one."""

from functools import partial
from tempfile import TemporaryDirectory

import torch
import torch.distributed as dist
from torch import nn

from pipeline.bench.gpu_check.check import NOT_COMPILED, Check, Figure, needs_compiler
from pipeline.bench.gpu_check.inputs import BATCH, made_up_job
from pipeline.bench.gpu_check.networks import Computed, errors, worst
from pipeline.bench.plain import one_rank
from pipeline.compute.distributed import Ranks
from pipeline.training import sharding
from pipeline.training.job import Job
from pipeline.training.trainer import share

STEPS, LR = 5, 1e-2
EPS = 1e-3  # of Adam: its usual 1e-8 makes a whole step of a gradient that is rounding alone


def placed(job: Job, device: torch.device, sharded: bool, compiled: bool) -> nn.Module:
    """The network of a job with its weights whole or in parts."""
    torch.manual_seed(0)
    net, blocks = job.workload.build(), job.workload.blocks()
    job.workload.place(device, announce=False)
    sharding.spread([net], Ranks(0, 1, device), sharded, blocks)
    return sharding.compiled(net, sharded, blocks) if compiled else net


def trained(job: Job, model: nn.Module) -> Computed:
    """Last loss, gradients and weights of a few steps; a Computed calls the weights velocity."""
    # Steps of Adam
    workload = job.workload
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, eps=EPS, fused=True)
    for step in range(STEPS):
        optimizer.zero_grad(set_to_none=True)
        loss = workload.loss(model, workload.batch(share(step * BATCH, 0, 0, 1, BATCH)))
        loss.backward()
        optimizer.step()
    # Put together
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    state = sharding.whole({"weights": model.state_dict(), "gradients": gradients}, keep=True)
    weights = torch.cat([exact(value).flatten() for value in state["weights"].values()])
    return Computed(weights, exact(loss), {n: exact(g) for n, g in state["gradients"].items()})


def exact(value: torch.Tensor) -> torch.Tensor:
    """Float64 on the CPU."""
    return value.detach().cpu().double()


def fsdp2(compiled: bool, device: torch.device) -> Figure:
    """Some steps with sharded weights against the same with whole ones."""
    if compiled:
        needs_compiler(device)
    with TemporaryDirectory() as folder, one_rank(device):
        job = made_up_job(folder, "model.dropout=0.2")
        right = trained(job, placed(job, device, False, False))
        ours = trained(job, placed(job, device, True, compiled))
    error, of_what = worst(errors(ours, right))
    return Figure(
        error, 1e-3, "relative", note=f"{of_what.replace('velocity', 'weights')} is furthest"
    )


def exchanges(device: torch.device) -> Figure:
    """Sums of a rank with itself, on the device and, as the stop flag is, on the CPU."""
    wrong = 0
    with one_rank(device):
        for place in (device, torch.device("cpu")):
            value = torch.arange(1000, dtype=torch.float32, device=place)
            for operation in (dist.ReduceOp.SUM, dist.ReduceOp.MIN, dist.ReduceOp.MAX):
                result = value.clone()
                dist.all_reduce(result, operation)
                wrong += int((result != value).sum())
        dist.barrier()
    return Figure(wrong, 0, "values")


AMPLIFIED = "rounding of 1e-6, with fast convolutions 1e-5, which some steps make ten times that"
CHECKS = (
    Check("sums of one rank", exchanges, "one rank has nothing to add"),
    Check("fsdp2 on one rank, eager", partial(fsdp2, False), AMPLIFIED),
    Check("fsdp2 on one rank, compiled", partial(fsdp2, True), AMPLIFIED, NOT_COMPILED),
)
