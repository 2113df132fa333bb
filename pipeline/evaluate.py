"""Scores of images against real ones: distances with floor and ceiling, and accuracy.

    python -m pipeline.evaluate config=... samples=FOLDER record=RECORD.json
        reference=FILE.npz out=METRICS.json
    python -m pipeline.evaluate images=PATH reference=PATH [out=FILE.json]

The first form scores the samples of a run against the pack that its model was trained on. The
second scores any images (a folder, .npz, .npy) against any reference: such images, a pack, or a
file of statistics. `across=<source>_<res>-<recipe>` allows a reference of another pack, which it
names. Runs as one process or, under torchrun, as several with the same result.

The Fréchet distance compares all images with the whole reference. Beside it stands a bracket at
equal numbers n of images: two disjoint random parts A and B of the real images, the samples, and
uniform noise, each against B. d(A,B) is what a perfect model would get (floor), d(noise,B) what
images without any content get (ceiling). The kernel distance, precision and recall compare all
samples with all real images too, up to 50,000 on each side, since they need the features; the
Monge distance needs equal numbers.
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.base.errors import UserError, run_main
from pipeline.compute.distributed import ranks
from pipeline.config.load import load_step
from pipeline.config.paths import out_file, record_file, reference_file, run_folder, samples_folder
from pipeline.config.schema import Config
from pipeline.config.stages import rank_keys, write_config
from pipeline.drawing.pictures import neighbours_picture
from pipeline.drawing.tiles import save_picture
from pipeline.images.sources.find import resolve_image_set
from pipeline.launching.handover import hand_over
from pipeline.reporting.records import ImagesEvaluation
from pipeline.scoring.evaluation import evaluate
from pipeline.scoring.extractors import KINDS, load_extractor
from pipeline.scoring.image_sets import ImageSet
from pipeline.scoring.inputs import Inputs, check_weights, read_any, read_inputs
from pipeline.scoring.measure import Work
from pipeline.scoring.neighbours import Neighbours
from pipeline.steps import STEPS

STEP = STEPS["evaluate"]


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
    def identity(self) -> dict[str, Any]:
        """What all ranks must have in common; the images by their number and how they were made."""
        inputs, about = self.inputs, self.inputs.about.model_dump(exclude={"file"})
        images = {"num": len(inputs.images), "how": inputs.how}
        return {**rank_keys(self.config, "evaluate"), "images": images, "reference": about}


def prepare(argv: list[str]) -> Job:
    """Read and check everything; paths not given follow from the config and its first seed."""
    return job_of(*load_step(argv, STEP.words))


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


def preflight(config: Config, paths: dict[str, str], world: int) -> dict[str, Any]:
    """All checks that need no network."""
    return job_of(config, paths).identity


# --- result --------------------------------------------------------------------------------------


def show(result: ImagesEvaluation) -> None:
    """Print one line per score, then the notes."""
    # One line each
    for score in result.metrics:
        line = f"{score.label}: {score.value:.4g}"
        if near := score.bracket:
            line += f" (at {near.num_images:,} images: floor {near.floor:.4g}, "
            line += f"value {near.value:.4g}, ceiling {near.ceiling:.4g})"
        if score.real is not None and score.near is not None:
            line += f" (at {score.real_num:,} images: {score.near:.4g}, "
            line += f"real images {score.real:.4g})"
        print(line)
    # Classes
    if accuracy := result.class_accuracy:
        real = accuracy.floor.overall
        print(f"Class accuracy: {accuracy.overall:.4g} (real images: {real:.4g})")
    # Notes
    for note in result.notes:
        print(f"note: {note}")


def write(job: Job, result: ImagesEvaluation, neighbours: Neighbours | None) -> None:
    """Write the result and, beside it, the picture of the neighbours."""
    if job.out is None:
        return
    if neighbours and job.inputs.real:
        path = job.out.with_name(f"{job.out.stem}-neighbours.png")
        save_neighbours(path, neighbours, job.inputs.images, job.inputs.real)
    result.write(job.out)


def save_neighbours(path: Path, neighbours: Neighbours, images: ImageSet, real: ImageSet) -> None:
    """Write the picture of the neighbours: each of the images beside the nearest real ones."""
    shown = np.asarray(images.read(neighbours.rows))
    rows = neighbours.real_rows
    nearest = real.read(rows.ravel()).reshape(*rows.shape, *shown.shape[1:])
    picture = neighbours_picture(shown, nearest, neighbours.distances, neighbours.caption())
    save_picture(path, picture)


def main(argv: list[str]) -> None:
    """Entry point of every rank."""
    # Perhaps by another launcher
    hand_over(STEP.module, argv, STEP.words)
    start = time.monotonic()
    job = prepare(argv)
    if job.run and job.out and os.environ.get("RANK", "0") == "0":
        write_config(job.out.parent, job.config, "evaluate")

    # Features, scores, files
    settings = job.config.evaluate
    runtime, launch = job.config.runtime, job.config.launch
    with ranks(runtime.device, job.identity, launch.join_seconds) as group:
        extractor = load_extractor(settings.extractor, settings.weights, group.device)
        group.agree({"sha256 of the extractor": extractor.weights_sha256})
        if job.inputs.reference:
            check_weights(job.inputs.reference, extractor, job.reference)
            if job.inputs.kept:
                job.inputs.kept.check(job.inputs.reference, job.reference, group)
        work = Work(job.inputs, extractor, job.config, group)
        if evaluated := evaluate(work):
            seconds = round(time.monotonic() - start, 1)
            result = evaluated.scores.model_copy(update={"seconds": seconds})
            write(job, result, evaluated.neighbours)
            show(result)
        group.barrier()


if __name__ == "__main__":
    run_main(main)
