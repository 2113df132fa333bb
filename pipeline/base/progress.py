"""Progress of a step: its lines on the terminal, and the rows of its metrics file."""

import json
import re
import time
from contextlib import suppress
from pathlib import Path

from pipeline.base.files import atomic_stream

Row = dict[str, float | None]  # numbers by their names, `step` among them; None: not known


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss or m:ss."""
    minutes, seconds_left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds_left:02d}" if hours else f"{minutes}:{seconds_left:02d}"


def is_progress(line: str) -> bool:
    """Whether a printed line is one of Progress, which a later one replaces."""
    return re.match(PATTERN, line) is not None


PATTERN = r"[^:]+: [\d,]+ (of [\d,]+ )?([a-z]+)  .* \2/s"


class Progress:
    """Prints at most one line every `interval_s` seconds: items done, items/s and time left.

    `unit` is what several items are called. `num_before` of them were there before this process and
    do not count for its speed; a step that discovers them on its way raises the number itself.
    """

    def __init__(
        self,
        step: str,
        total: int | None,
        interval_s: float,
        num_before: int = 0,
        unit: str = "images",
    ) -> None:
        """`total` None: nobody knows how many there will be."""
        self.step, self.total, self.interval_s = step, total, interval_s
        self.num_before, self.unit = num_before, unit
        self.start_time = self.last_time = time.monotonic()

    def rate(self, num_done: int) -> float:
        """Images per second of this process so far."""
        return (num_done - self.num_before) / max(time.monotonic() - self.start_time, 1e-9)

    def due(self) -> bool:
        """Whether it is time for another line."""
        return time.monotonic() - self.last_time >= self.interval_s

    def show(self, num_done: int, note: str = "") -> None:
        """Print the line for `num_done` images, those of before included."""
        self.last_time = time.monotonic()
        with suppress(OSError):  # a reader that has gone is not a reason to lose the work
            print(f"{self.step}: {self.line(num_done, note)}", flush=True)

    def line(self, num_done: int, note: str = "") -> str:
        """The line without the step's name."""
        rate = self.rate(num_done)
        parts = [f"{num_done:,} {self.unit}", note, f"{rate:,.0f} {self.unit}/s"]
        if self.total is not None:
            parts[0] = f"{num_done:,} of {self.total:,} {self.unit}"
            num_left = max(0, self.total - num_done)
            parts.append(f"{clock(num_left / rate) if rate > 0 else '?'} left")
        return "  ".join(part for part in parts if part)


def write_rows(path: Path, rows: list[Row]) -> None:
    """Write rows as JSON lines in the order of their steps, atomically."""
    with atomic_stream(path) as stream:
        for row in sorted(rows, key=step_of):
            stream.write((json.dumps(row) + "\n").encode())


def step_of(row: Row) -> float:
    """The step at whose end a row was written."""
    step = row["step"]
    assert step is not None
    return step


def read_rows(path: Path) -> list[Row]:
    """The complete rows of a JSON-lines file; a last line cut by a kill is dropped."""
    if not path.exists():
        return []
    # Whole rows only
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows
