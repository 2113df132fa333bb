"""Flow matching as a workload: velocity of the path from noise to the images of a pack."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.base.errors import UserError
from pipeline.compute import draws, execution
from pipeline.config.paths import pack_folder
from pipeline.config.schema import Config
from pipeline.data.pack import DataAbout, Pack, check_arrays
from pipeline.data.reader import Mapped, Reader, moved, open_reader, rows_at
from pipeline.flow import coupling, probability_path
from pipeline.flow.times import sample_times
from pipeline.flow.weighting import denoising_loss
from pipeline.networks import families

# Images of 64 x 64 px that one forward and backward pass takes at most if runtime.micro_batch is
# auto and no GPU is there to measure. The reference network then keeps about 17 GB of bf16
# activations.
AUTO_IMAGES, AUTO_SIZE = 64, 64
MOST_ROWS = 16  # named in one message


@dataclass(frozen=True)
class Batch:
    """x1 images, x0 noise (B,3,H,W) float32; t (B,) in [0,1]; labels (B,) with dropout applied.

    `keys` (B,2) int32: random words of the network's dropout; None: it has none.
    """

    # The path
    x0: Tensor
    x1: Tensor
    t: Tensor
    # Dropped at random
    labels: Tensor
    keys: Tensor | None


class FlowMatching:
    """Trains the velocity v(x_t, t, label) of the conditional optimal-transport path.

    A workload as pipeline/training/workload.py describes it. `place` opens the pack on a device;
    before that nothing but the pack's description is needed.
    """

    def __init__(self, config: Config, pack: Pack) -> None:
        self.config, self.pack = config, pack
        self.num_classes = len(pack.record.classes)
        self.reader: Reader | None = None

    @property
    def num_items(self) -> int:
        """Images of the pack."""
        return len(self.pack)

    @property
    def most_items(self) -> int:
        """Images of one pass at most if no GPU can measure it."""
        return max(1, round(AUTO_IMAGES * (AUTO_SIZE / self.config.data.resolution) ** 2))

    def check(self) -> None:
        """Raise UserError if the pack's arrays are not those of its record."""
        check_arrays(self.pack, pack_folder(self.config))

    def place(self, device: torch.device, announce: bool) -> None:
        """Open the pack for batches on `device`: a copy there, or the memory map."""
        setting = self.config.runtime.data_on_device
        self.reader = open_reader(self.pack, self.config.train.seed, device, setting, 0, announce)
        if announce and (note := coupling.small_groups_note(self.config, self.pack.labels)):
            print(f"note: {note}", flush=True)

    def read_ahead(self, num_positions: int) -> None:
        """Gather the images so many positions on while a batch is computed."""
        if isinstance(self.reader, Mapped):
            self.reader.ahead = num_positions

    def build(self) -> nn.Module:
        """The velocity network."""
        return families.build(self.config.model, self.num_classes)

    def batch(self, positions: np.ndarray) -> Batch:
        """All that the given positions (B,) of the run see."""
        if self.reader is None:
            raise UserError("the pack is not open: call place(device) first")
        return draw(self.reader, self.config, positions)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Squared error of the velocity at x_t by train.weighting, its mean: a float32 scalar."""
        # State on the path
        layout = execution.memory_format(batch.x0.device)
        x_t = probability_path.interpolate(batch.x0, batch.x1, batch.t)
        inputs = x_t.contiguous(memory_format=layout), batch.t, batch.labels, batch.keys
        if self.config.train.weighting == "velocity":
            return probability_path.loss(model(*inputs), batch.x0, batch.x1)

        # As errors of a denoiser
        keys, uncertainty = self.config.model, None
        if families.family(keys).learns_uncertainty:
            velocity, uncertainty = model(*inputs, True)
        else:
            velocity = model(*inputs)
        return denoising_loss(velocity, batch.x0, batch.x1, batch.t, keys.sigma_data, uncertainty)

    def zeros(self, num: int, device: torch.device) -> Batch:
        """A batch of `num` black images without noise."""
        size = self.pack.record.resolution
        x = torch.zeros(num, 3, size, size, device=device)
        labels = torch.zeros(num, dtype=torch.int64, device=device)
        drops = self.config.model.dropout > 0
        keys = torch.zeros(num, 2, dtype=torch.int32, device=device) if drops else None
        return Batch(x, x, torch.zeros(num, device=device), labels, keys)

    def blocks(self) -> tuple[type[nn.Module], ...]:
        """Kinds of modules whose weights fsdp2 gathers at a time."""
        return families.family(self.config.model).blocks

    def after_step(self, net: nn.Module) -> None:
        """Whatever the family of the network does after an optimiser step."""
        if after_step := families.family(self.config.model).after_step:
            after_step(net)

    def locate(self, positions: np.ndarray) -> str:
        """The rows of the pack at the positions, the first few by number."""
        rows = rows_at(positions, self.config.train.seed, len(self.pack))
        shown = ", ".join(str(row) for row in rows[:MOST_ROWS])
        more = len(rows) - MOST_ROWS
        return f"rows {shown}{f' and {more:,} more' if more > 0 else ''} of the pack"

    def about(self) -> dict[str, Any]:
        """The part of the pack's record that weights carry, as JSON."""
        return DataAbout.of(self.pack.record).to_json()


def draw(reader: Reader, config: Config, positions: np.ndarray) -> Batch:
    """All that the given positions (B,) of the run see: a pure function of (seed, position)."""
    # Images and noise
    train, seed, classes = config.train, config.train.seed, reader.pack.record.classes
    x0, x1, labels = coupling.pairs(reader, config, positions)
    # Draws by position
    index = moved(positions, reader.device)
    uniform = draws.uniform(seed, draws.TIME, index)
    dropped = draws.uniform(seed, draws.LABEL_DROPOUT, index)
    return Batch(
        x0=x0,
        x1=x1,
        t=sample_times(train.times, uniform, train.time_mean, train.time_std),
        labels=probability_path.drop_labels(labels, dropped, train.label_dropout, len(classes)),
        keys=draws.pairs(seed, draws.DROPOUT, index) if config.model.dropout > 0 else None,
    )
