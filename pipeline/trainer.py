"""Network, optimiser and weight average of a training run, one step at a time.

What position n of the run draws (image, flip, time, noise, label dropout) is a pure function of
(seed, n). The ranks share the positions of a step out among them, so the model does not depend on
their number beyond the order of float sums. (Network dropout is the exception: its masks follow
the rank.)
"""

import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipeline import checkpoint, execution, flow, noise
from pipeline.config import stage_keys
from pipeline.data import Pack, load_batch
from pipeline.distributed import Ranks
from pipeline.ema import EMA
from pipeline.errors import UserError
from pipeline.keys import Config
from pipeline.sharing import micro_batch
from pipeline.unet import UNet


@dataclass(frozen=True)
class Job:
    """All that is known before the first step."""

    config: Config
    pack: Pack
    out: Path
    scratch: Path  # checkpoints, metrics and events of exactly these experiment keys
    steps: int  # optimiser steps of the whole run


@dataclass(frozen=True)
class Batch:
    """x1 images, x0 noise (B,3,H,W) float32; t (B,) in (0,1); labels (B,) with dropout applied."""

    x0: Tensor
    x1: Tensor
    t: Tensor
    labels: Tensor


def draw(pack: Pack, config: Config, positions: np.ndarray, device: torch.device) -> Batch:
    """All that the given positions (B,) of the run see: a pure function of (seed, position)."""
    train, seed = config.train, config.train.seed
    x1, labels = load_batch(pack, positions, seed, train.flip, device)
    index = torch.from_numpy(positions).to(device)
    dropped = noise.uniform(seed, noise.LABEL_DROPOUT, index)
    return Batch(
        x0=noise.normal(seed, noise.TRAIN_NOISE, index, tuple(x1.shape[1:])),
        x1=x1,
        t=noise.uniform(seed, noise.TIME, index),
        labels=flow.drop_labels(labels, dropped, train.label_dropout, len(pack.record["classes"])),
    )


class Trainer:
    """Network, optimiser and average at one step; knows how to take the next one."""

    def __init__(self, job: Job, group: Ranks) -> None:
        self.job, self.config, self.group = job, job.config, group
        train = self.config.train
        torch.manual_seed(train.seed)  # weights are drawn on the CPU: the same on every device
        self.net = UNet(self.config.model, len(job.pack.record["classes"]))
        self.model = self._parallel()
        self.ema = EMA(self.net, train.ema_halflife_images, train.ema_rampup)
        self.optimizer = torch.optim.AdamW(
            self.net.parameters(),
            lr=train.lr,
            betas=train.betas,
            weight_decay=train.weight_decay,
            fused=group.device.type == "cuda",
        )
        self.micro = micro_batch(self.config, group.world)
        self.step = 0
        self.device_seconds = 0.0  # wall time of training steps x world size, over all runs
        self.loss_sum = torch.zeros((), device=group.device)

    def _parallel(self) -> nn.Module:
        group = self.group
        model = execution.prepare(self.net, group.device, self.config.runtime.compile, group.first)
        if group.world == 1:
            return model
        # Every parameter has a gradient in every step: labels are dropped per sample.
        return DistributedDataParallel(model, gradient_as_bucket_view=True)

    @property
    def images(self) -> int:
        """Images seen so far by all ranks."""
        return self.step * self.config.train.batch

    def learning_rate(self) -> float:
        """Rises linearly over warmup_images, then stays."""
        train = self.config.train
        share = (self.images + train.batch) / max(train.warmup_images, 1)
        return train.lr * min(1.0, share)

    def train_step(self) -> None:
        """One optimiser step over the global batch, in micro-batches, and the average's update."""
        began = time.monotonic()
        passes = self.config.train.batch // (self.micro * self.group.world)
        self._seed_dropout()
        for number in range(passes):
            last = number == passes - 1
            no_sync = getattr(self.model, "no_sync", nullcontext)
            with nullcontext() if last else no_sync():
                self._accumulate(number, passes)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        self.optimizer.step()
        self.step += 1
        self.ema.update(self.net, self.images, self.config.train.batch)
        self.device_seconds += (time.monotonic() - began) * self.group.world

    def _accumulate(self, number: int, passes: int) -> None:
        """Forward and backward of this rank's micro-batch `number` of the step."""
        first = self.images + (number * self.group.world + self.group.rank) * self.micro
        positions = np.arange(first, first + self.micro, dtype=np.int64)
        batch = draw(self.job.pack, self.config, positions, self.group.device)
        if number == 0:
            self.optimizer.zero_grad(set_to_none=True)
        layout = execution.memory_format(self.group.device)
        x_t = flow.interpolate(batch.x0, batch.x1, batch.t).contiguous(memory_format=layout)
        with execution.autocast(self.config.train.precision, self.group.device):
            velocity = self.model(x_t, batch.t, batch.labels)
        loss = flow.loss(velocity, batch.x0, batch.x1) / passes
        loss.backward()
        self.loss_sum += loss.detach()

    def _seed_dropout(self) -> None:
        """Dropout masks as a function of (seed, step, rank), so that a resume repeats them."""
        if self.config.model.dropout > 0:
            place = self.step * self.group.world + self.group.rank
            torch.manual_seed((self.config.train.seed * 1_000_003 + place) % 2**63)

    # --- state -------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Everything a later process needs to go on exactly here."""
        return {
            "step": self.step,
            "device_seconds": self.device_seconds,
            "net": self.net.state_dict(),
            "ema": self.ema.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "config": stage_keys(self.config, "train"),
            "versions": {"torch": str(torch.__version__)},
        }

    def resume(self) -> None:
        """Go on from the newest readable checkpoint, if there is one."""
        if self.group.first:
            checkpoint.remove_abandoned(self.job.scratch)
        state = checkpoint.load_newest(self.job.scratch, self.job.steps)
        if state is None:
            return
        self.step, self.device_seconds = state["step"], state["device_seconds"]
        self.net.load_state_dict(state["net"])
        self.ema.net.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.group.first:
            print(f"train: going on from step {self.step:,} of {self.job.steps:,}", flush=True)

    def save(self) -> None:
        """Write a checkpoint on rank 0, after all ranks saw that the loss is finite."""
        self.check_finite(float(self.group.mean(self.loss_sum.clone())))
        if self.group.first:
            keep = self.config.runtime.keep_checkpoints
            checkpoint.save(self.job.scratch, self.step, self.state(), keep)

    def check_finite(self, *values: float) -> None:
        """Raise UserError where a value is NaN or infinite; no checkpoint holds such a state."""
        if not np.isfinite(values).all():
            raise UserError(
                f"the loss or gradient is not finite at step {self.step} {values}: lower train.lr; "
                f"the checkpoints in {self.job.scratch} are from before"
            )

    def row(self, steps: int, seconds: float) -> dict[str, Any]:
        """One row of the curve: means over the last `steps` steps, which took `seconds`.

        Every rank must call it at the same step. Raises UserError where the loss is not finite.
        """
        loss = float(self.group.mean(self.loss_sum)) / steps
        self.loss_sum.zero_()
        gradients = [p.grad for p in self.net.parameters() if p.grad is not None]
        norm = float(nn.utils.get_total_norm(gradients))
        self.check_finite(loss, norm)
        return {
            "step": self.step,
            "images": self.images,
            "loss": loss,
            "grad_norm": norm,
            "lr": self.learning_rate(),
            "images_per_s": steps * self.config.train.batch / seconds,
            "seconds": self.device_seconds / self.group.world,
            "gpu_hours": self.device_seconds / 3600,
        }
