"""Network, optimiser and weight average of a training run, one step at a time.

What position n of the run draws (image, flip, time, noise, label dropout) is a pure function of
(seed, n). The ranks share the positions of a step out among them, so the model does not depend on
their number beyond the order of float sums. (Network dropout is the exception: its masks follow
the rank.)
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.compute import execution
from pipeline.compute.distributed import Ranks
from pipeline.config.schema import Config
from pipeline.config.stages import stage_keys
from pipeline.data.pack import Pack
from pipeline.data.reader import Mapped, open_reader
from pipeline.flow import probability_path
from pipeline.flow.workload import draw
from pipeline.networks.flops import training_flops
from pipeline.networks.unet import UNet
from pipeline.training import checkpoint, fitting, sharding
from pipeline.training.batch_size import micro_batch
from pipeline.training.ema import EMA
from pipeline.training.finite import Watch
from pipeline.training.learning_rate import learning_rate
from pipeline.training.meter import Meter


@dataclass(frozen=True)
class Job:
    """All that is known before the first step."""

    config: Config
    pack: Pack
    out: Path
    scratch: Path  # checkpoints, metrics and events of exactly these experiment keys
    steps: int  # optimiser steps of the whole run


def share(first: int, number: int, rank: int, world: int, micro: int) -> np.ndarray:
    """Positions (micro,) of a rank's micro-batch `number` in the step whose positions start at
    `first`. Its next micro-batch, also that of the next step, lies world * micro positions on.
    """
    start = first + (number * world + rank) * micro
    return np.arange(start, start + micro, dtype=np.int64)


class Trainer:
    """Network, optimiser and average at one step; knows how to take the next one."""

    def __init__(self, job: Job, group: Ranks) -> None:
        self.job, self.config, self.group = job, job.config, group
        train = self.config.train
        execution.set_float32(train.precision, group.device)
        self.micro = micro_batch(self.config, group.world)
        setting, ahead = self.config.runtime.data_on_device, self.micro * group.world
        self.reader = open_reader(job.pack, train.seed, group.device, setting, ahead, group.first)
        torch.manual_seed(train.seed)  # weights are drawn on the CPU: the same on every device
        classes = len(job.pack.record["classes"])
        self.net = UNet(self.config.model, classes)
        self.averages = [EMA(self.net, h, train.ema_rampup) for h in train.ema_halflife_images]
        self.model = self._parallel()
        self.optimizer = torch.optim.AdamW(
            self.net.parameters(),
            lr=train.lr,
            betas=train.betas,
            weight_decay=train.weight_decay,
            fused=True,
        )
        self.scaler = torch.amp.GradScaler(group.device.type, enabled=train.precision == "fp16")
        self.step = 0
        self.device_seconds = 0.0  # wall time of training steps x world size, over all runs
        self.loss_sum = torch.zeros((), device=group.device)
        self.watch = Watch(group)
        flops = training_flops(self.config.model, classes, job.pack.record["resolution"])
        self.meter = Meter(group.device, flops, self.config.runtime.progress_seconds)
        self.writer = checkpoint.Writer(job.scratch, self.config.runtime.keep_checkpoints)
        # of all, before any clipping, in the last step that the scaler did not skip
        self.gradient_norm = torch.zeros((), device=group.device)

    def _parallel(self) -> nn.Module:
        """The network on the ranks, once a pass has shown that the micro-batch fits."""
        group, runtime = self.group, self.config.runtime
        sharded = sharding.is_sharded(self.config, group)
        sharding.spread([self.net, *(a.net for a in self.averages)], group, sharded)
        model: nn.Module = self.net
        if execution.compiles(group.device, runtime.compile, group.first):
            model = sharding.compiled(model, sharded)
        size = self.job.pack.record["resolution"]
        if runtime.micro_batch == "auto" and group.device.type == "cuda":
            own = self.config.train.batch // group.world
            self.micro = fitting.measured(model, self.config, size, own, group, sharded)
            if isinstance(self.reader, Mapped):
                self.reader.ahead = self.micro * group.world
        model = sharding.parallel(model, group)
        if group.world > 1:
            with execution.enough_memory(self.micro, "runtime.micro_batch", group.device):
                for _ in range(sharding.REHEARSALS):
                    fitting.rehearse(model, self.config, size, self.micro, group.device)
            self.net.zero_grad(set_to_none=True)
        return model

    @property
    def images(self) -> int:
        """Images seen so far by all ranks."""
        return self.step * self.config.train.batch

    def train_step(self) -> None:
        """One optimiser step over the global batch, in micro-batches, and the average's update."""
        began = time.monotonic()
        passes = self.config.train.batch // (self.micro * self.group.world)
        self._seed_dropout()
        for number in range(passes):
            with sharding.accumulating(self.model, last=number == passes - 1):
                self._accumulate(number, passes)
        self.scaler.unscale_(self.optimizer)
        self._clip()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config.train, self.images)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.step += 1
        # Also after a step that the scaler skipped: its images are seen, the weights are as before.
        for average in self.averages:
            average.update(self.net, self.images, self.config.train.batch)
        self.device_seconds += (time.monotonic() - began) * self.group.world

    def _accumulate(self, number: int, passes: int) -> None:
        """Forward and backward of this rank's micro-batch `number` of the step."""
        group = self.group
        positions = share(self.images, number, group.rank, group.world, self.micro)
        with self.meter.waiting():
            batch = draw(self.reader, self.config, positions)
        if number == 0:
            self.optimizer.zero_grad(set_to_none=True)
        layout = execution.memory_format(self.group.device)
        x_t = probability_path.interpolate(batch.x0, batch.x1, batch.t).contiguous(
            memory_format=layout
        )
        with execution.autocast(self.config.train.precision, self.group.device):
            velocity = self.model(x_t, batch.t, batch.labels)
        loss = probability_path.loss(velocity, batch.x0, batch.x1) / passes
        self.scaler.scale(loss).backward()
        self.loss_sum += loss.detach()
        self.watch.note("loss", loss, int(positions[0]))

    def _clip(self) -> None:
        """Scale the gradient down to clip_grad_norm where it is longer, without waiting for it."""
        norm = sharding.total_norm(p.grad for p in self.net.parameters() if p.grad is not None)
        # While it can still halve its scale, the scaler skips a step that is not finite, no more.
        skipped = ~norm.isfinite() & (self.scaler.scale(torch.ones_like(norm)) > 1)
        self.gradient_norm = torch.where(skipped, self.gradient_norm, norm)
        self.watch.note("gradient", self.gradient_norm, self.images)
        limit = self.config.train.clip_grad_norm
        if limit is not None:
            nn.utils.clip_grads_with_norm_(self.net.parameters(), limit, norm)

    def _seed_dropout(self) -> None:
        """Dropout masks as a function of (seed, step, rank), so that a resume repeats them."""
        if self.config.model.dropout > 0:
            place = self.step * self.group.world + self.group.rank
            torch.manual_seed((self.config.train.seed * 1_000_003 + place) % 2**63)

    # --- state -------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Everything a later process needs to go on exactly here. All ranks must ask for it."""
        state = {
            "step": self.step,
            "device_seconds": self.device_seconds,
            "net": self.net.state_dict(),
            "averages": [average.net.state_dict() for average in self.averages],
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "config": stage_keys(self.config, "train"),
            "data": self.job.pack.record["sha256"],
            "versions": {"torch": str(torch.__version__)},
        }
        return sharding.whole(state, keep=self.group.first)

    def averaged_weights(self) -> list[dict[str, Tensor]]:
        """The weights of each average, whole, on rank 0. All ranks must ask for them."""
        return [sharding.whole(a.net.state_dict(), self.group.first) for a in self.averages]

    def resume(self) -> None:
        """Go on from the newest readable checkpoint, if there is one."""
        if self.group.first:
            checkpoint.remove_abandoned(self.job.scratch)
        state = checkpoint.load_newest(self.job.scratch, self.job.steps)
        if state is None:
            return
        self.step, self.device_seconds = state["step"], state["device_seconds"]
        sharding.load_net(self.net, state["net"])
        for average, saved in zip(self.averages, state["averages"], strict=True):
            sharding.load_net(average.net, saved)
        sharding.load_optimizer(self.optimizer, state["optimizer"])
        self.scaler.load_state_dict(state.get("scaler", {}))  # older ones are not of fp16
        if self.group.first:
            print(f"train: going on from step {self.step:,} of {self.job.steps:,}", flush=True)

    def save(self) -> None:
        """Have a checkpoint written on rank 0, after all ranks saw that the state is finite."""
        weights = sharding.total_norm(self.net.parameters())
        self.watch.note("weights", weights, self.images - self.config.train.batch)
        self.check_finite()
        state = self.state()
        if self.group.first:
            self.writer.save(self.step, state, self.at_milestone())

    def at_milestone(self) -> bool:
        """Whether the checkpoint of this step is one that stays."""
        every = self.config.runtime.milestone_images
        return checkpoint.is_milestone(self.step, self.config.train.batch, every)

    def check_finite(self) -> None:
        """Raise UserError on all ranks where anything was NaN or infinite since the last check.

        Every rank must call it at the same step. No checkpoint holds such a state.
        """
        train = self.config.train
        remedy = f"lower train.lr; the checkpoints in {self.job.scratch} are from before"
        self.watch.check(train.seed, train.batch, self.micro, len(self.job.pack), remedy)

    def row(self, steps: int, seconds: float) -> dict[str, Any]:
        """One row of the curve: means over the last `steps` steps, which took `seconds`.

        Every rank must call it at the same step. Raises UserError where the loss is not finite.
        """
        loss = float(self.group.mean(self.loss_sum)) / steps
        self.loss_sum.zero_()
        self.check_finite()
        images_per_s = steps * self.config.train.batch / seconds
        return {
            "step": self.step,
            "images": self.images,
            "loss": loss,
            "grad_norm": float(self.gradient_norm),
            "lr": self.optimizer.param_groups[0]["lr"],
            "images_per_s": images_per_s,
            **self.meter.numbers(images_per_s / self.group.world, seconds),
            "seconds": self.device_seconds / self.group.world,
            "gpu_hours": self.device_seconds / 3600,
        }
