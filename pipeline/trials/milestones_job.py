"""The scoring of a training's milestones, checked before it starts, and without loading torch."""

from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.base.errors import UserError
from pipeline.config.paths import duals_file, out_folder, record_file, reference_file, run_folder
from pipeline.config.samplers import check_guidance, class_numbers
from pipeline.config.schema import Config
from pipeline.config.selection import check_any_network
from pipeline.config.stages import rank_keys
from pipeline.config.workloads import check_solver
from pipeline.data.duals import load_duals, with_hash
from pipeline.data.pack import DataAbout, Record
from pipeline.images.sources.find import resolve_image_set
from pipeline.sampling import job as sampling
from pipeline.scoring.inputs import check_reference
from pipeline.scoring.kinds import KINDS
from pipeline.scoring.references import Reference, load_reference
from pipeline.training.milestones import Milestone, Run, open_run


@dataclass(frozen=True)
class Job:
    """All that is known before the first milestone."""

    # What is scored
    config: Config  # whose sample is the one sampler
    run: Run
    seed: int
    guide: sampling.Weights | None
    record: Record
    watch: bool
    # By what
    reference: Reference
    reference_file: Path
    # Where it goes
    out: Path

    @property
    def identity(self) -> dict[str, object]:
        """Values that all ranks must share."""
        guide = self.guide and self.guide.about.to_json()
        parts = {"training": self.run.identity, "seed": self.seed, "guide": guide}
        return {**rank_keys(self.config, "milestones"), **parts, "watch": self.watch}

    def sampling(self, milestone: Milestone) -> sampling.Job:
        """The samples of a milestone."""
        about = self.run.about(milestone)
        weights = sampling.Weights(milestone.path, about, DataAbout.of(self.record))
        return sampling.Job(self.config, weights, self.guide, self.seed, self.out)


def job_of(config: Config, words: dict[str, str]) -> Job:
    """The job that a configuration and the paths of the command line ask for."""
    # The first sampler, with fewer images
    watch = words.get("watch", "false").lower()
    if watch not in ("true", "false"):
        raise UserError(f"watch={watch} is not valid: use true or false")
    config = resolve_image_set(config)
    seed = words.get("seed", str(config.sample.samplers[0].seeds[0]))
    if not seed.removeprefix("-").isdecimal():
        raise UserError(f"seed={seed} is not a whole number")
    keys = {"num": config.evaluate.milestone_num, "ema_images": None, "selected": False}
    sample = config.sample.samplers[0].model_copy(update=keys)
    check_any_network("pipeline.milestones", sample)
    config = config.model_copy(update={"sample": sample})

    # The training
    record = Record.read(Path(words.get("record", record_file(config))))
    folder = Path(words.get("training", run_folder(config) / "train"))
    scratch = Path(words["checkpoints"]) if "checkpoints" in words else None
    run = trained_run(config, folder, scratch, record, words.get("duals"))

    # What measures it
    KINDS[config.evaluate.extractor].find(config.evaluate.weights)
    file = Path(words.get("reference", reference_file(config)))
    reference = load_reference(file, config.evaluate.extractor)
    check_reference(reference, record, config.evaluate.extractor, file)

    # The sampler fits
    out = out_folder(Path(words.get("out", run_folder(config) / "milestones")))
    job = Job(config, run, int(seed), None, record, watch == "true", reference, file, out)
    weights = job.sampling(Milestone(0, folder)).weights
    check_solver(sample, weights.of_tokens)
    class_numbers(sample, weights.classes)
    sampling.check_counts(sample, weights)
    check_guidance(sample, weights.classes is not None, run.config.train.label_dropout)
    return replace(job, guide=sampling.read_guide(sample, weights, words.get("guide")))


def trained_run(
    config: Config, folder: Path, scratch: Path | None, record: Record, duals: str | None = None
) -> Run:
    """The training in `folder` on the pack of `record`, and on its duals if it has some.

    `duals`: their file; None: that of the training's keys.
    """
    run = open_run(config, folder, scratch, DataAbout.of(record).to_json())
    if run.config.train.coupling != "semidiscrete":
        return run
    identified = with_hash(record, load_duals(Path(duals or duals_file(run.config))))
    return open_run(config, folder, scratch, DataAbout.of(identified).to_json())
