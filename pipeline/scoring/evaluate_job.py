"""An evaluation, checked before anything expensive starts, and without loading torch."""

from dataclasses import dataclass
from pathlib import Path

from pipeline.base.errors import UserError
from pipeline.config.paths import out_file, record_file, reference_file, run_folder, samples_folder
from pipeline.config.schema import Config
from pipeline.config.stages import rank_keys
from pipeline.images.sources.find import resolve_image_set
from pipeline.scoring.inputs import Inputs, read_any, read_inputs
from pipeline.scoring.kinds import KINDS


@dataclass(frozen=True)
class Job:
    """All that is known before the first image is looked at."""

    # What is compared
    config: Config
    inputs: Inputs
    reference: Path
    # Where scores go
    out: Path | None  # file of the scores; None: they are only printed
    run: bool  # whether the images are the samples of a run

    @property
    def identity(self) -> dict[str, object]:
        """Values that all ranks must share; the images by their number and how they were made."""
        inputs, about = self.inputs, self.inputs.about.model_dump(exclude={"file"})
        images = {"num": len(inputs.images), "how": inputs.how}
        return {**rank_keys(self.config, "evaluate"), "images": images, "reference": about}


def job_of(config: Config, path_words: dict[str, str]) -> Job:
    """The job that a configuration and the paths of the command line ask for."""
    # The extractor is there
    config = resolve_image_set(config)
    KINDS[config.evaluate.extractor].find(config.evaluate.weights)
    across, out = path_words.get("across"), path_words.get("out")
    if "images" in path_words:
        if more := [word for word in ("samples", "record") if word in path_words]:
            raise UserError(
                f"images= and {more[0]}= are both given: images= takes any images, and "
                f"{more[0]}= is of samples of a run; leave one of them out"
            )
        if "reference" not in path_words:
            raise UserError("images=PATH needs reference=PATH: give what they are compared with")
        # Any images
        reference = Path(path_words["reference"])
        inputs = read_any(config, Path(path_words["images"]), reference, across)
        return Job(config, inputs, reference, out_file(Path(out)) if out else None, False)
    # Samples of a run
    samples = Path(path_words.get("samples", samples_folder(config, config.sample.seeds[0])))
    default_out = run_folder(config) / "metrics" / f"{samples.parent.name}-{samples.name}.json"
    record = Path(path_words.get("record", record_file(config)))
    reference = Path(path_words.get("reference", reference_file(config)))
    inputs = read_inputs(config, samples, record, reference, across)
    return Job(config, inputs, reference, out_file(Path(out or default_out)), True)
