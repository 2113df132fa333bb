"""The candidates of a search: networks of any average, tried with all seeds, each once."""

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import fmean

from pipeline.base.files import sha256_json
from pipeline.reporting.trials import Try
from pipeline.sampling.job import Job, read_weights
from pipeline.sampling.network import Networks, build
from pipeline.sampling.shards import Checksums
from pipeline.training.averaging import Stored, about_of, solve, weighted_sum
from pipeline.training.power_profile import Profile
from pipeline.training.weights_file import save_weights
from pipeline.trials.points import Points
from pipeline.trials.search import Candidate


@dataclass
class Candidates:
    """The candidates around one sampler, on all ranks: `job` says what they have in common."""

    # What they have in common
    job: Job
    sums: Checksums  # of the files of `job`
    points: Points
    # The averages
    stored: Stored | None  # None: the weights of `job` alone
    images: int  # seen when the averages were taken
    # What was tried, in order
    seeds: tuple[int, ...]
    tried: dict[Candidate, Try] = field(default_factory=dict)
    _networks: dict[float | None, Networks] = field(default_factory=dict)  # of the last width

    def distance(self, candidate: Candidate) -> float:
        """The mean distance over the seeds; the same on every rank."""
        if candidate not in self.tried:
            self.tried[candidate] = self.attempt(candidate)
            if self.points.judge.group.first:
                print(f"select: {self.line(candidate)}", flush=True)
        return self.tried[candidate].distance

    def line(self, candidate: Candidate) -> str:
        """A candidate and its score, for a person."""
        width = "" if candidate.ema_width is None else f"width {candidate.ema_width:g}, "
        low, high = candidate.interval
        between = "" if candidate.interval == (0, 1) else f" from {low:g} to {high:g}"
        place, distance = len(self.tried), self.tried[candidate].distance
        return f"try {place}: {width}guidance {candidate.guidance:g}{between}: {distance:.4g}"

    def attempt(self, candidate: Candidate) -> Try:
        """The trials of a candidate, one for each seed."""
        job, sums = self.job_of(candidate), self.sums_of(candidate.ema_width)
        build_networks = partial(self.networks, candidate.ema_width)
        trials = [
            self.points.trial(replace(job, seed=seed), sums, build_networks) for seed in self.seeds
        ]
        return Try(
            ema_width=candidate.ema_width,
            guidance=candidate.guidance,
            interval=list(candidate.interval),
            distance=fmean(trial.distance for trial in trials),
            evaluations=sum(trial.evaluations for trial in trials),
        )

    def job_of(self, candidate: Candidate) -> Job:
        """The job of a candidate, whose average need not be there yet."""
        keys = {
            "ema_width": candidate.ema_width,
            "guidance": candidate.guidance,
            "guidance_interval": candidate.interval,
        }
        sample = self.job.config.sample.model_copy(update=keys)
        config = self.job.config.model_copy(update={"sample": sample})
        weights = self.job.weights
        if self.stored is not None:
            seen = {"ema_width": candidate.ema_width, "images": self.images}
            weights = weights._replace(about=weights.about.model_copy(update=seen))
        return replace(self.job, config=config, weights=weights)

    def sums_of(self, width: float | None) -> Checksums:
        """What stands for the checksum of an average: all that it is made of."""
        if self.stored is None:
            return self.sums
        made = {"weights": self.sums.weights, "ema_width": width, "images": self.images}
        return self.sums._replace(weights=sha256_json(made))

    def networks(self, width: float | None) -> Networks:
        """The network of a width, and its guide; called by all ranks, one width at a time."""
        if width not in self._networks:
            self._networks.clear()  # before the next ones need their memory
            job = self.job
            if self.stored is not None:
                job = replace(job, weights=read_weights(self.average(width)))
            self._networks[width] = build(job, self.points.judge.group)
        return self._networks[width]

    def average(self, width: float | None) -> Path:
        """The file of an average, made by rank 0 if it is not there; the one before is removed."""
        assert self.stored is not None and width is not None
        group, folder = self.points.judge.group, self.points.folder
        file = folder / f"ema{width}-{self.sums_of(width).weights[:12]}.safetensors"
        if group.first and not file.exists():
            for old in folder.glob("*.safetensors"):
                old.unlink()
            wanted = Profile(width, self.images)
            shares = solve(self.stored, wanted)
            about = about_of(self.stored, shares.last, wanted)
            save_weights(file, weighted_sum(shares.files), about)
        group.barrier()
        return file
