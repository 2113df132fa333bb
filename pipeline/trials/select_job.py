"""A search, checked before anything expensive starts, and without loading torch."""

from dataclasses import dataclass
from pathlib import Path

from pipeline.base.errors import UserError
from pipeline.config.paths import choice_file, out_folder, record_file, reference_file
from pipeline.config.schema import Config
from pipeline.config.selection import base_sampler, most_guided
from pipeline.config.stages import rank_keys
from pipeline.data.pack import Record
from pipeline.images.sources.find import resolve_image_set
from pipeline.sampling import job as sampling
from pipeline.scoring.inputs import check_reference
from pipeline.scoring.kinds import KINDS
from pipeline.scoring.references import Reference, load_reference
from pipeline.training.averaging import Stored, find_stored, needed

WEIGHTS = ("weights", "guide")  # words of files of weights


@dataclass(frozen=True)
class Job:
    """All that is known before the first try."""

    # What is searched
    config: Config
    sampling: sampling.Job  # of the sampler around which is searched
    stored: Stored | None  # None: no width is searched
    images: int  # seen when the averages were taken
    # By what
    reference: Reference
    reference_file: Path

    @property
    def identity(self) -> dict[str, object]:
        """Values that all ranks must share."""
        return {**self.sampling.identity, **rank_keys(self.config, "select")}


def job_of(config: Config, words: dict[str, str]) -> Job:
    """The job that a configuration and the paths of the command line ask for."""
    # Something to search
    select = config.select
    if select is None:
        raise UserError(
            "select is null, so nothing is chosen: give select.ema_widths, select.guidance or "
            "select.intervals"
        )
    config = base_sampler(resolve_image_set(config))
    job = searched_sampler(config, words)

    # What measures it
    KINDS[config.evaluate.extractor].find(config.evaluate.weights)
    file = Path(words.get("reference", reference_file(config)))
    record = Record.read(Path(words.get("record", record_file(config))))
    reference = load_reference(file, config.evaluate.extractor)
    check_reference(reference, record, config.evaluate.extractor, file)
    check_pack(job, record)

    # The averages
    images = config.sample.ema_images or job.weights.about.images or 0
    stored = find_stored(config, {"weights": str(job.weights.path)}) if select.ema_widths else None
    if stored is not None:
        needed(stored, images)
    return Job(config, job, stored, images, reference, file)


def searched_sampler(config: Config, words: dict[str, str]) -> sampling.Job:
    """The job around which is searched, with the guidance weight that is farthest from 1.

    So all that any try needs is there, or UserError is raised.
    """
    # Its keys
    assert config.select is not None
    keys: dict[str, object] = {"num": config.select.num, "guidance": most_guided(config).guidance}
    if config.select.ema_widths:
        keys |= {"ema_width": None, "ema_images": None}
    sample = config.sample.model_copy(update=keys)

    # Its files
    paths = {word: words[word] for word in WEIGHTS if word in words}
    out = out_folder(Path(words.get("out", choice_file(config).parent)))
    paths |= {"seed": str(config.select.seeds[0]), "out": str(out)}
    return sampling.job_of(config.model_copy(update={"sample": sample}), paths)


def check_pack(job: sampling.Job, record: Record) -> None:
    """Raise UserError if the weights say that they were trained on another pack than `record`."""
    trained = job.weights.data.sha256
    if trained is not None and trained.images != record.sha256.images:
        raise UserError(
            f"weights {job.weights.path} were trained on {job.weights.data.name} "
            f"({trained.images[:8]}…), and the record is of {record.name} "
            f"({record.sha256.images[:8]}…): give the record and the reference of their pack"
        )
