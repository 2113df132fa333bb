"""Network, optimiser and weight average of a training run, one step at a time.

All draws for position n of the run (image, flip, time, noise, dropout) follow from (seed, n). Ranks
share out the positions of a step, so their number changes nothing but the order of float sums.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.base.progress import Row
from pipeline.compute import draws, execution
from pipeline.compute.distributed import Ranks
from pipeline.config.paths import weights_files
from pipeline.config.stages import stage_keys
from pipeline.training import checkpoint, ema, fitting, sharding, snapshot_files, snapshots
from pipeline.training.batch_size import images_of_a_rank, micro_batch
from pipeline.training.finite import Watch
from pipeline.training.flops import training_flops
from pipeline.training.job import Job
from pipeline.training.learning_rate import learning_rate
from pipeline.training.meter import Clock, Meter
from pipeline.training.power_profile import Profile
from pipeline.training.weights_file import WeightsAbout


def share(first: int, index: int, rank: int, world: int, micro: int) -> np.ndarray:
    """Positions (micro,) of a rank's micro-batch `index` in the step whose positions start at
    `first`. Its next micro-batch, also that of the next step, lies world * micro positions on.
    """
    start = first + (index * world + rank) * micro
    return np.arange(start, start + micro, dtype=np.int64)


class Trainer:
    """Network, optimiser and average at one step; knows how to take the next one."""

    def __init__(self, job: Job, group: Ranks) -> None:
        self.job, self.config, self.group = job, job.config, group
        self.workload = job.workload
        train, runtime = self.config.train, self.config.runtime
        # precision and data
        execution.set_float32(train.precision, group.device)
        self.micro = micro_batch(self.config, group.world, self.workload.most_items)
        self.workload.place(group.device, group.first)
        # network, averages and optimiser; weights are drawn on the CPU: the same on every device
        torch.manual_seed(draws.torch_seed(train.seed))
        self.net = self.workload.build()
        self.averages = ema.averages(self.net, train)
        self.model = self._parallel()
        self.parameters = list(self.net.parameters())  # as the ranks hold them
        self.workload.read_ahead(self.micro * group.world)
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=train.lr,
            betas=train.betas,
            eps=train.eps,
            weight_decay=train.weight_decay,
            fused=True,
        )
        self.scaler = torch.amp.GradScaler(group.device.type, enabled=train.precision == "fp16")
        # counters and measurements
        self.step = 0
        self.start: dict[str, str] | None = None  # where the first weights are from
        self.clock = Clock(group.world)
        self.loss_sum = torch.zeros((), device=group.device)
        self.watch = Watch(group)
        self.meter = Meter(group.device, training_flops(self.workload), runtime.progress_seconds)
        self.writer = checkpoint.Writer(job.scratch, runtime.keep_checkpoints)
        # of all, before any clipping, in the last step that the scaler did not skip
        self.gradient_norm = torch.zeros((), device=group.device)

    def _parallel(self) -> nn.Module:
        """The network on the ranks, once a pass has shown that the micro-batch fits."""
        group, runtime, blocks = self.group, self.config.runtime, self.workload.blocks()
        precision = self.config.train.precision
        # placement of the weights
        sharded = sharding.is_sharded(self.config, group)
        averages = [net for average in self.averages for net in average.nets]
        sharding.spread([self.net, *averages], group, sharded, blocks)
        model: nn.Module = self.net
        if execution.compiles(group.device, runtime.compile, group.first):
            model = sharding.compiled(model, sharded, blocks)
        # the largest micro-batch that fits
        if runtime.micro_batch == "auto" and group.device.type == "cuda":
            local = images_of_a_rank(self.config, group.world)
            self.micro = fitting.measured(model, self.workload, precision, local, group, sharded)
        # exchange of gradients
        model = sharding.parallel(model, group)
        if group.world > 1:
            unit = self.workload.unit
            with execution.enough_memory(self.micro, "runtime.micro_batch", group.device, unit):
                for _ in range(sharding.REHEARSALS):
                    fitting.rehearse(model, self.workload, precision, self.micro, group.device)
            self.net.zero_grad(set_to_none=True)
        return model

    @property
    def images(self) -> int:
        """Images seen so far by all ranks."""
        return self.step * self.config.train.batch

    def train_step(self) -> None:
        """One optimiser step over the global batch, in micro-batches, and the average's update."""
        with self.clock.running():
            # Gradients of the batch
            num_passes = self.config.train.batch // (self.micro * self.group.world)
            self._seed_torch()
            for index in range(num_passes):
                with sharding.accumulating(self.model, last=index == num_passes - 1):
                    self._accumulate(index, num_passes)
            # The optimiser's step
            self.scaler.unscale_(self.optimizer)
            self._clip()
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(self.config.train, self.images)
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.workload.after_step(self.net)
            self.step += 1
            # Also after a step that the scaler skipped: its images are seen, the weights as before
            for average in self.averages:
                average.update(self.parameters, self.images, self.config.train.batch)

    def _accumulate(self, index: int, num_passes: int) -> None:
        """Forward and backward of this rank's micro-batch `index` of the step."""
        # Data of this rank
        group = self.group
        positions = share(self.images, index, group.rank, group.world, self.micro)
        with self.meter.waiting():
            batch = self.workload.batch(positions)
        # Gradients add up
        if index == 0:
            self.optimizer.zero_grad(set_to_none=True)
        with execution.autocast(self.config.train.precision, group.device):
            loss = self.workload.loss(self.model, batch) / num_passes
        # Seen by the watch
        self.scaler.scale(loss).backward()
        self.loss_sum += loss.detach()
        self.watch.note("loss", loss, int(positions[0]))

    def _clip(self) -> None:
        """Scale the gradient down to clip_grad_norm if it is longer, without waiting for it."""
        norm = sharding.total_norm(p.grad for p in self.parameters if p.grad is not None)
        # While it can still halve its scale, the scaler skips a step that is not finite, no more.
        skipped = ~norm.isfinite() & (self.scaler.scale(torch.ones_like(norm)) > 1)
        self.gradient_norm = torch.where(skipped, self.gradient_norm, norm)
        self.watch.note("gradient", self.gradient_norm, self.images)
        limit = self.config.train.clip_grad_norm
        if limit is not None:
            nn.utils.clip_grads_with_norm_(self.parameters, limit, norm)

    def _seed_torch(self) -> None:
        """What a network draws by torch's generator: by (seed, step, rank), so a resume repeats it.

        Ours draw nothing so, since it would depend on the number of ranks.
        """
        place = self.step * self.group.world + self.group.rank
        torch.manual_seed(draws.torch_seed(self.config.train.seed) * 1_000_003 + place)

    # --- state -------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Everything a later process needs to go on exactly here. All ranks must ask for it."""
        # Shared by all ranks
        state = {
            # Where the run is
            "step": self.step,
            "device_seconds": self.clock.seconds,
            # Weights and moments
            "net": self.net.state_dict(),
            "averages": [average.net.state_dict() for average in self.averages],
            "remainders": [[net.state_dict() for net in a.nets[1:]] for a in self.averages],
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            # Which experiment it is
            "config": stage_keys(self.config, "train"),
            "data": self.workload.about()["sha256"],
            "start": self.start,
            "versions": {"torch": str(torch.__version__)},
        }
        return sharding.whole(state, keep=self.group.first)

    def averaged_weights(self) -> list[dict[str, Tensor]]:
        """Whole weights on rank 0, of each average with a file. All ranks must ask for them."""
        written = self.averages[: len(weights_files(self.config.train))]
        return [sharding.whole(a.net.state_dict(), self.group.first) for a in written]

    def begin(self, weights: dict[str, Tensor], about: dict[str, str]) -> None:
        """Start from `weights`, averages too, which are as `about` says."""
        for net in (self.net, *(average.net for average in self.averages)):
            sharding.load_net(net, weights)
        self.workload.after_step(self.net)
        self.start = about

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on exactly from where `state` was taken."""
        self.step, self.clock.seconds = state["step"], state["device_seconds"]
        self.start = state.get("start")
        sharding.load_net(self.net, state["net"])
        for average, saved in zip(self.averages, state["averages"], strict=True):
            sharding.load_net(average.net, saved)
        remainders = state.get("remainders", [])  # older checkpoints have none: they begin at 0
        for average, saved in zip(self.averages, remainders, strict=False):
            for net, values in zip(average.nets[1:], saved, strict=True):
                sharding.load_net(net, values)
        sharding.load_optimizer(self.optimizer, state["optimizer"])
        self.scaler.load_state_dict(state.get("scaler", {}))  # older ones are not of fp16

    def save(self) -> None:
        """Have a checkpoint written on rank 0, after all ranks saw that the state is finite."""
        self.check_weights()
        state = self.state()
        if self.group.first:
            self.writer.save(self.step, state, self.at_milestone())

    def store_averages(self) -> None:
        """Write the averages of power profile to their files, if it is time for it.

        Every rank must call it after each step.
        """
        # At a multiple, or the end
        train = self.config.train
        at_multiple = checkpoint.is_milestone(self.step, train.batch, train.ema_snapshot_images)
        if train.ema != "power" or not (at_multiple or self.step == self.job.steps):
            return

        # One file per width
        self.check_weights()
        for average, width in zip(self.averages, train.ema_widths, strict=True):
            path = snapshot_files.file_of(self.job.snapshots, Profile(width, self.images))
            about, precision = self.about(width), train.ema_snapshot_precision
            snapshots.save(path, average.net, precision, about, self.group.first)

    def about(self, average: float, **more: Any) -> WeightsAbout:
        """The record of weights averaged with a half-life or width, and `more`."""
        if self.config.train.ema == "power":
            more["ema_width"] = average
        else:
            more["ema_halflife_images"] = int(average)
        if self.start is not None:
            more["start"] = self.start
        return WeightsAbout(
            config=stage_keys(self.config, "train"),
            record=self.workload.about(),
            images=self.images,
            torch=str(torch.__version__),
            **more,
        )

    def check_weights(self) -> None:
        """Raise UserError on all ranks if anything, the weights included, is not finite."""
        weights = sharding.total_norm(self.parameters)
        self.watch.note("weights", weights, self.images - self.config.train.batch)
        with self.clock.running():
            self.check_finite()

    def at_milestone(self) -> bool:
        """Whether the checkpoint of this step is one that stays."""
        every = self.config.runtime.milestone_images
        return checkpoint.is_milestone(self.step, self.config.train.batch, every)

    def check_finite(self) -> None:
        """Raise UserError on all ranks if anything was NaN or infinite since the last check.

        Every rank must call it at the same step. No checkpoint holds such a state.
        """
        batch = self.config.train.batch
        remedy = (
            "lower train.lr, which begins a new training at step 0; the checkpoints of this one, "
            f"from before, stay in {self.job.scratch}, and train.start=CHECKPOINT starts the new "
            "one from the weights of one of them"
        )
        self.watch.check(batch, self.micro, self.workload.locate, remedy, self.workload.unit)

    def row(self, steps: int, seconds: float) -> Row:
        """One row of the curve: means over the last `steps` steps, which took `seconds`.

        Every rank must call it at the same step. Raises UserError if the loss is not finite.
        """
        # Loss since the last row
        with self.clock.running():
            loss = float(self.group.mean(self.loss_sum)) / steps
            self.check_finite()
        self.loss_sum.zero_()
        images_per_s = steps * self.config.train.batch / seconds
        # Figures of the row
        return {
            "step": self.step,
            "images": self.images,
            "loss": loss,
            "grad_norm": float(self.gradient_norm),
            "lr": self.optimizer.param_groups[0]["lr"],
            "images_per_s": images_per_s,
            **self.meter.numbers(images_per_s / self.group.world, seconds),
            "seconds": self.clock.seconds / self.group.world,
            "gpu_hours": self.clock.seconds / 3600,
        }
