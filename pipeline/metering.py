"""How far and how fast: progress lines, the metrics file and TensorBoard events."""

import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.files import atomic_stream


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss or m:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Mark:
    """A place in a run: images seen, and the time since."""

    def __init__(self, images: int) -> None:
        self.images = images
        self.since = time.monotonic()

    def seconds(self) -> float:
        """Seconds since the mark was set."""
        return time.monotonic() - self.since


class Progress:
    """Prints one line at most every `every` seconds: done of total, images/s and time left."""

    def __init__(self, what: str, total: int, every: float, start: int = 0) -> None:
        """Counts from `start` (images done before this process) to `total` images."""
        self.what, self.total, self.every, self.start = what, total, every, start
        self.began = self.told = time.monotonic()

    def rate(self, done: int) -> float:
        """Images per second of this process so far."""
        return (done - self.start) / max(time.monotonic() - self.began, 1e-9)

    def due(self) -> bool:
        """Whether it is time for another line."""
        return time.monotonic() - self.told >= self.every

    def show(self, done: int, note: str = "") -> None:
        """Print the line for `done` images."""
        self.told = time.monotonic()
        rate = self.rate(done)
        left = clock((self.total - done) / rate) if rate > 0 else "?"
        note = f"  {note}" if note else ""
        share = f"{done:,} of {self.total:,} images"
        with suppress(OSError):  # whoever read it is gone, which is no reason to lose the work
            print(f"{self.what}: {share}{note}  {rate:,.0f} images/s  {left} left", flush=True)


class Metrics:
    """`metrics.jsonl` and TensorBoard events of a run folder; no step stands there twice."""

    def __init__(self, folder: Path, step: int, last: int) -> None:
        """Open at `step`, dropping the rows up to step `last` that are now made again.

        Rows after `last` are of a longer run of the same experiment, and stay.
        """
        from torch.utils.tensorboard import SummaryWriter  # slow to import, needed by rank 0 only

        self.path = folder / "metrics.jsonl"
        write_rows(self.path, [r for r in read_rows(self.path) if not step < r["step"] <= last])
        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def add(self, row: dict[str, Any]) -> None:
        """Append one row: `step`, `images` and any numbers; None is no number for TensorBoard."""
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        for name, value in row.items():
            if name not in ("step", "images") and value is not None:
                self.writer.add_scalar(name, value, row["step"])

    def close(self) -> None:
        """Flush the events."""
        self.writer.close()


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows as JSON lines in the order of their steps, atomically."""
    with atomic_stream(path) as stream:
        for row in sorted(rows, key=lambda r: r["step"]):
            stream.write((json.dumps(row) + "\n").encode())


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The complete rows of a JSON-lines file; a last line cut by a kill is dropped."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows
