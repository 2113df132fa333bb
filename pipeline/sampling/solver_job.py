"""A fit of a solver, checked before anything expensive starts, and without loading torch."""

from dataclasses import dataclass
from pathlib import Path

from pipeline.base.errors import UserError
from pipeline.config.paths import out_file, solver_file
from pipeline.config.samplers import one_sampler
from pipeline.config.schema import Config, Sample
from pipeline.config.stages import rank_keys
from pipeline.images.sources.find import resolve_image_set
from pipeline.sampling import job as sampling

TOLERANCE = 1e-5  # of the solutions that are to be met


@dataclass(frozen=True)
class Job:
    """All that is known before the first image."""

    sampler: Config  # that samples with the fitted solver
    exact: sampling.Job  # the same, by dopri5
    out: Path

    @property
    def identity(self) -> dict[str, object]:
        """Values that all ranks must share."""
        return {**self.exact.identity, **rank_keys(self.sampler, "solver")}


def job_of(config: Config, words: dict[str, str]) -> Job:
    """The job that a configuration and the paths of the command line ask for."""
    # The sampler
    config = one_sampler(resolve_image_set(config), words.get("sampler"))
    sample = config.sample
    if not sample.learned:
        raise UserError(
            f"sample.solver={sample.solver} has nothing to fit: give sample.solver=learned"
        )
    out = Path(words.get("out", solver_file(config)))

    # Where it should come to
    job = sampling.job_of(
        config.model_copy(update={"sample": by_dopri5(sample)}),
        {word: words[word] for word in ("weights", "guide", "choice") if word in words}
        | {"seed": str(sample.fit_seed), "out": str(out.parent)},
    )
    chosen = {key: getattr(sample, key) for key in ("solver", "precision")}
    sample = job.config.sample.model_copy(update=chosen)
    return Job(config.model_copy(update={"sample": sample}), job, out_file(out))


def by_dopri5(sample: Sample) -> Sample:
    """The sampler of the exact solutions, of sample.fit_images images.

    Half precision would give it rounding to follow instead of the velocity: tf32 takes its place.
    """
    precision = sample.precision if sample.precision in ("fp32", "tf32") else "tf32"
    keys = {"solver": "dopri5", "rtol": TOLERANCE, "atol": TOLERANCE, "num": sample.fit_images}
    return sample.model_copy(update={**keys, "precision": precision})
