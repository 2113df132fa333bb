"""The training curve: rows of metrics as JSON lines and as TensorBoard events."""

import json
import time
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.base.progress import Row, read_rows, step_of, write_rows

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class Mark:
    """A place in a run: images seen, and the time since."""

    def __init__(self, images: int) -> None:
        self.images = images
        self.since = time.monotonic()

    def seconds(self) -> float:
        """Seconds since the mark was set."""
        return time.monotonic() - self.since


class Metrics:
    """`metrics.jsonl` and TensorBoard events of a run folder; no step stands there twice."""

    def __init__(self, folder: Path, step: int, last: int) -> None:
        """Open at `step`, dropping the rows up to step `last` that are now made again.

        Rows after `last` are of a longer run of the same experiment, and stay.
        """
        self.folder, self.step = folder, step
        self.path = folder / "metrics.jsonl"
        rows = read_rows(self.path)
        write_rows(self.path, [row for row in rows if not step < step_of(row) <= last])

    @cached_property
    def events(self) -> "SummaryWriter":
        """The TensorBoard file, opened for the first row: its modules are slow to import."""
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(self.folder / "tensorboard"), purge_step=self.step + 1)

    def add(self, row: Row) -> None:
        """Append one row: `step`, `images` and any numbers; None does not go to TensorBoard."""
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        for name, value in row.items():
            if name not in ("step", "images") and value is not None:
                self.events.add_scalar(name, value, row["step"])

    def close(self) -> None:
        """Flush the events."""
        self.events.close()
