"""The part that workloads on the images of a pack share: all but batches and losses."""

import numpy as np
import torch
from torch import nn

from pipeline.base.errors import UserError
from pipeline.config.paths import pack_folder
from pipeline.config.schema import Config
from pipeline.data.pack import DataAbout, Pack, check_arrays
from pipeline.data.reader import Mapped, Reader, open_reader, rows_at
from pipeline.flow import coupling
from pipeline.networks import families

# Images of 64 x 64 px that one forward and backward pass takes at most if runtime.micro_batch is
# auto and no GPU is there to measure. The reference network then keeps about 17 GB of bf16
# activations.
AUTO_IMAGES, AUTO_SIZE = 64, 64
MOST_ROWS = 16  # named in one message


class OnImages:
    """The part of a workload, as pipeline/training/workload.py describes it, that reads a pack.

    `place` opens the pack on a device; before that nothing but its description is needed.
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
    def unit(self) -> str:
        """Images."""
        return "images"

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
        """The network of the section `model`."""
        return families.build(self.config.model, self.num_classes)

    @property
    def opened(self) -> Reader:
        """The reader of the pack; raises UserError before `place`."""
        if self.reader is None:
            raise UserError("the pack is not open: call place(device) first")
        return self.reader

    def dropout_keys(self, num: int, device: torch.device) -> torch.Tensor | None:
        """Zeros (num,2) instead of dropout's random words; None: the network has no dropout."""
        drops = self.config.model.dropout > 0
        return torch.zeros(num, 2, dtype=torch.int32, device=device) if drops else None

    def blocks(self) -> tuple[type[nn.Module], ...]:
        """Kinds of modules whose weights fsdp2 gathers at a time."""
        return families.family(self.config.model).blocks

    def after_step(self, net: nn.Module) -> None:
        """Whatever the family of the network does after an optimiser step."""
        if after_step := families.family(self.config.model).after_step:
            after_step(net)

    def locate(self, positions: np.ndarray) -> str:
        """The rows of the pack at the positions, the first few by number."""
        rows = self.rows(positions)
        shown = ", ".join(str(row) for row in rows[:MOST_ROWS])
        more = len(rows) - MOST_ROWS
        return f"rows {shown}{f' and {more:,} more' if more > 0 else ''} of the pack"

    def rows(self, positions: np.ndarray) -> np.ndarray:
        """Rows of the pack that the positions see."""
        return rows_at(positions, self.config.train.seed, len(self.pack))

    def about(self) -> dict[str, object]:
        """The part of the pack's record that weights carry, as JSON."""
        return DataAbout.of(self.pack.record).to_json()
