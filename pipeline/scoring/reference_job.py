"""The making of a reference, checked before it starts, and without loading torch."""

from pipeline.base.errors import UserError
from pipeline.config.paths import reference_file
from pipeline.config.schema import Config
from pipeline.data.pack_job import PackJob, pack_job
from pipeline.images.sources.find import resolve_image_set
from pipeline.scoring.kinds import KINDS


def job_of(config: Config, path_words: dict[str, str]) -> PackJob:
    """The job that a configuration and the paths of the command line ask for."""
    config = resolve_image_set(config)
    KINDS[config.evaluate.extractor].find(config.evaluate.weights)
    job = pack_job("reference", config, path_words, reference_file(config))
    if len(job.pack) < 2:
        raise UserError("the pack holds one image, and a covariance needs two: use a larger pack")
    return job
