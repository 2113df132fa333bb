"""Features of many images in sections, each a file, so that a pass that was killed goes on.

A section is some consecutive batches. Rank r of `world` makes every world-th section alone and
writes its file; once all are there, they are read in their order. So the result is the same to the
bit on any number of ranks, and however often the pass was interrupted.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.base.files import atomic_stream
from pipeline.base.progress import Progress
from pipeline.compute.distributed import Ranks
from pipeline.scoring.keepers import Batch, FeaturesOf, Moments

LEAST_IMAGES = 512  # of a section; its moments are megabytes
MOST_SECTIONS = 64


@dataclass(frozen=True)
class Pass:
    """A pass over all images of a set, and what it keeps of them."""

    # The set
    title: str  # of its progress lines and files
    features_of: FeaturesOf
    batch: int  # images at once
    # What is kept
    wanted: np.ndarray  # (N,) bool: of which images the features themselves
    width: int  # D
    moments: bool  # of all images
    folder: Path  # of the sections

    @property
    def rows(self) -> np.ndarray:
        """The images (K,) int64 whose features are kept, ascending."""
        return np.flatnonzero(self.wanted)

    @property
    def length(self) -> int:
        """Images of a section: whole batches."""
        images = max(LEAST_IMAGES, math.ceil(len(self.wanted) / MOST_SECTIONS))
        return math.ceil(images / self.batch) * self.batch

    @property
    def starts(self) -> range:
        """The first image of each section."""
        return range(0, len(self.wanted), self.length)

    def file(self, start: int) -> Path:
        """The file of the section that begins with image `start`."""
        return self.folder / f"{self.title}-{start:09d}.npz"

    def stored(self, key: str) -> Iterator[np.ndarray]:
        """An array of each section, in their order."""
        for start in self.starts:
            with np.load(self.file(start), allow_pickle=False) as data:
                yield data[key]


def run(job: Pass, group: Ranks, seconds: float) -> None:
    """Make the sections that are missing, on all ranks; when it returns all are there.

    Rank 0 prints a progress line at most every `seconds` seconds, and one at the end.
    Raises UserError if the disk is full; finished sections stay.
    """
    # Those of an earlier run
    total, found = len(job.wanted), [start for start in job.starts if job.file(start).exists()]
    num_done = sum(min(job.length, total - start) for start in found)
    progress = Progress(job.title, total, seconds, num_done)

    # This rank's
    for start in job.starts[group.rank :: group.world]:
        if start in found:
            continue
        section = Section(job, group)
        for rows in batches(job, start):
            section.add(Batch(rows, job.features_of(rows)[0], None))
            num_done += len(rows) * group.world
            if group.first and progress.due():
                progress.show(min(num_done, total))
        section.write(job.file(start))
    group.barrier()
    if group.first:
        progress.show(total)


def batches(job: Pass, start: int) -> Iterator[np.ndarray]:
    """The images (B,) int64 of each batch of the section that begins with image `start`."""
    end = min(start + job.length, len(job.wanted))
    for first in range(start, end, job.batch):
        yield np.arange(first, min(first + job.batch, end))


class Section:
    """Features and sums of the images of one section."""

    def __init__(self, job: Pass, group: Ranks) -> None:
        self.wanted, self.features = job.wanted, [np.empty((0, job.width), np.float32)]
        self.moments = Moments(job.width, group.device) if job.moments else None

    def add(self, batch: Batch) -> None:
        """Take one batch."""
        part = batch.only(self.wanted[batch.rows])
        self.features.append(part.features.float().cpu().numpy())
        if self.moments is not None:
            self.moments.add(batch)

    def write(self, file: Path) -> None:
        """Write it to its file, atomically."""
        arrays: dict[str, Any] = {"features": np.concatenate(self.features)}
        if self.moments is not None:
            total, outer = self.moments.total.cpu(), self.moments.outer.cpu()
            arrays |= {"num": self.moments.num, "total": total.numpy(), "outer": outer.numpy()}
        with atomic_stream(file) as stream:
            np.savez(stream, **arrays)


def moments_of(job: Pass) -> Moments:
    """The moments of all sections, which are there, added in their order."""
    moments = Moments(job.width)
    moments.num = sum(int(num) for num in job.stored("num"))
    for key in ("total", "outer"):
        whole = getattr(moments, key)
        for part in job.stored(key):
            whole += torch.from_numpy(part)
    return moments
