"""A plain trainer of the same network on the same draws: what `train` is measured against.

It computes what pipeline.training computes, with habits that are common and cost time: eager mode,
NCHW, attention by an explicit softmax, fp16 autocast with a gradient scaler on CUDA (float32 on
CPU), AdamW and the average parameter by parameter, `.item()` in every step, and DDP that searches
for unused parameters. Nothing else makes it slow.
"""

import copy
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.compute import draws
from pipeline.compute.distributed import Ranks
from pipeline.flow import probability_path
from pipeline.networks.unet import Attention
from pipeline.training import sharding
from pipeline.training.job import Job
from pipeline.training.learning_rate import learning_rate
from pipeline.training.trainer import share


class PlainAttention(Attention):
    """The same attention, with the matrix of its weights written out."""

    def forward(self, x: Tensor, *_: Tensor | None) -> Tensor:
        """(B,C,H,W) -> (B,C,H,W); of a block's other arguments none is used."""
        # Queries, keys and values
        b, c, h, w = x.shape
        parts = self.qkv(self.norm(x)).reshape(b, 3, self.heads, c // self.heads, h * w)
        q, k, v = parts.unbind(1)  # (B,heads,C/heads,HW)
        # The whole matrix
        scores = torch.einsum("bhcq,bhck->bhqk", q, k) * (c // self.heads) ** -0.5
        weights = torch.softmax(scores.float(), dim=-1).type(scores.dtype)
        mixed = torch.einsum("bhqk,bhck->bhcq", weights, v).reshape(b, c, h, w)
        out: Tensor = x + self.proj(mixed)
        return out


def plain_network(job: Job) -> nn.Module:
    """The network of a job, with the same first weights."""
    torch.manual_seed(draws.torch_seed(job.config.train.seed))
    net = job.workload.build()
    for module in net.modules():
        if isinstance(module, Attention):
            module.__class__ = PlainAttention
    return net


class PlainTrainer:
    """Takes one step of a job at a time on one device, without micro-batches."""

    def __init__(self, job: Job, group: Ranks) -> None:
        """`group` has one rank; the process group that DDP wants must exist."""
        # Data of the job
        self.job, self.config, self.group = job, job.config, group
        train, self.cuda = job.config.train, group.device.type == "cuda"
        job.workload.place(group.device, announce=False)
        job.workload.read_ahead(train.batch)
        # Network and averages
        self.net = plain_network(job).to(group.device)
        self.model = DistributedDataParallel(self.net, find_unused_parameters=True)
        self.averages = [copy.deepcopy(self.net).eval() for _ in train.ema_halflife_images]
        # Optimiser and counters
        self.optimizer = torch.optim.AdamW(
            self.net.parameters(),
            lr=train.lr,
            betas=train.betas,
            weight_decay=train.weight_decay,
            foreach=False,
        )
        self.scaler = torch.amp.GradScaler(group.device.type, enabled=self.cuda)
        self.step = 0
        self.loss = 0.0

    def train_step(self) -> None:
        """One optimiser step over the batch."""
        # The batch, all at once
        train, num_images = self.config.train, self.step * self.config.train.batch
        batch = self.job.workload.batch(share(num_images, 0, 0, 1, train.batch))
        self.optimizer.zero_grad()
        # Loss in half precision
        half = self.cuda and train.precision != "fp32"
        with torch.autocast(self.group.device.type, torch.float16, enabled=half):
            x_t = probability_path.interpolate(batch.x0, batch.x1, batch.t).contiguous()
            velocity = self.model(x_t, batch.t, batch.labels)
        loss = probability_path.loss(velocity, batch.x0, batch.x1)
        self.scaler.scale(loss).backward()
        # The optimiser's step
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(train, num_images)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        # Waits for the device
        self.loss = loss.item()
        self.step += 1
        for net, halflife in zip(self.averages, train.ema_halflife_images, strict=True):
            self._average(net, halflife)

    @torch.no_grad()
    def _average(self, average: nn.Module, halflife: float) -> None:
        train, num_images = self.config.train, self.step * self.config.train.batch
        halflife = min(halflife, num_images * train.ema_rampup) if train.ema_rampup else halflife
        decay = torch.tensor(0.5 ** (train.batch / max(halflife, 1e-8)))
        for old, new in zip(average.parameters(), self.net.parameters(), strict=True):
            old.mul_(decay.item()).add_(new, alpha=1 - decay.item())


@contextmanager
def one_rank(device: torch.device) -> Iterator[None]:
    """A process group of this one process, gone afterwards; nccl on a GPU, gloo for the CPU."""
    cuda = device.type == "cuda"
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # offline, gloo would wait for a name server
    dist.init_process_group(
        backend="cpu:gloo,cuda:nccl" if cuda else "gloo",
        store=dist.HashStore(),
        rank=0,
        world_size=1,
        device_id=device if cuda else None,
    )
    sharding.keep_group()
    try:
        yield
    finally:
        dist.destroy_process_group()
