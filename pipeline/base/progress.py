"""How far and how fast: progress lines, the metrics file and TensorBoard events."""

import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.base.files import atomic_stream


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss or m:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


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
