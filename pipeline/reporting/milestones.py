"""The scores of a training at its milestones: rows of a curve, and what a report says of them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from pipeline.base.errors import UserError
from pipeline.base.files import atomic_stream
from pipeline.base.json_objects import JsonObject
from pipeline.base.text import number

CURVE = "curve.jsonl"  # in the folder of the milestones
PICTURE = "curve.png"
COLUMNS = {"images": "images seen", "distance": "distance", "num": "N", "seed": "seed"}


class MilestoneRow(JsonObject):
    """The score of one milestone."""

    KIND: ClassVar[str] = "the score of a milestone"
    REMEDY: ClassVar[str] = "run `python -m pipeline.milestones` again"

    # When
    images: int  # seen in training
    # How far from the real images
    distance: float
    label: str  # of the distance, for people
    # Of which samples
    num: int
    seed: int
    sampler: str


def read_milestones(path: Path) -> list[MilestoneRow]:
    """The rows of a curve by images seen; raises UserError if it is missing, damaged or empty."""
    if not path.is_file():
        raise UserError(f"{path} is missing: {MilestoneRow.REMEDY}")
    rows = []
    for count, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            rows.append(MilestoneRow.parse(json.loads(line), f"line {count} of {path}"))
        except ValueError as error:
            raise UserError(f"line {count} of {path} is not JSON: {MilestoneRow.REMEDY}") from error
    if not rows:
        raise UserError(f"{path} holds no rows: {MilestoneRow.REMEDY}")
    return sorted(rows, key=lambda row: row.images)


def write_milestones(path: Path, rows: Sequence[MilestoneRow]) -> None:
    """Write the rows of a curve by images seen, atomically."""
    with atomic_stream(path) as stream:
        for row in sorted(rows, key=lambda row: row.images):
            stream.write((json.dumps(row.to_json()) + "\n").encode())


def in_words(rows: Sequence[MilestoneRow]) -> str:
    """A sentence on the first, best and last of the rows, which is not empty."""
    first, best, last = rows[0], min(rows, key=lambda row: row.distance), rows[-1]
    names = {"first": first, "best": best, "last": last} if len(rows) > 1 else {"alone": last}
    values = (f"{name} {number(r.distance)} at {r.images:,} images" for name, r in names.items())
    return (
        f"Over the training, {last.label}: {', '.join(values)} ({last.sampler}, {last.num:,} "
        f"samples with seed {last.seed} each). A distance depends on the number of samples: "
        "compare these with each other, not with scores of another number."
    )
