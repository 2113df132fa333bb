"""Trials that are kept, a file each, so that a killed search goes on at the first missing one."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline.base.files import sha256_json
from pipeline.reporting.trials import Trial
from pipeline.sampling.job import Job
from pipeline.sampling.network import Networks
from pipeline.sampling.shards import Checksums
from pipeline.trials.trial import Judge, dependencies, measure


@dataclass(frozen=True)
class Points:
    """A folder of trials. The name of each file is a hash of all that the trial depends on.

    So another key, network, reference or extractor never takes an old trial; another number of
    ranks or size of batches, which changes rounding alone, does.
    """

    folder: Path
    judge: Judge

    def file(self, job: Job, sums: Checksums) -> Path:
        """The file of the trial of `job`."""
        return self.folder / f"{sha256_json(dependencies(job, sums, self.judge))[:16]}.json"

    def kept(self, job: Job, sums: Checksums) -> Trial | None:
        """The trial of `job` that rank 0 finds in its folder, on every rank; None: not there.

        Raises UserError if its file is damaged.
        """
        group, file = self.judge.group, self.file(job, sums)
        text = file.read_text() if group.first and file.exists() else ""
        if group.first and text:
            Trial.read(file)  # one sentence if it is damaged
        text = group.share(text)
        return Trial.parse(json.loads(text), file) if text else None

    def trial(self, job: Job, sums: Checksums, networks: Callable[[], Networks]) -> Trial:
        """The trial of `job`, on every rank: the kept one, or else a new one, which is kept.

        `networks` is called only if it must be measured. Raises Stopped on every rank if a signal
        asks for it, and UserError if the disk is full.
        """
        if trial := self.kept(job, sums):
            return trial
        trial = measure(job, networks(), sums, self.judge)
        if self.judge.group.first:
            trial.write(self.file(job, sums))
        return trial
