"""An evaluation on all ranks, and the files that it leaves."""

import os
import time
from pathlib import Path

import numpy as np

from pipeline.compute.distributed import ranks
from pipeline.config.stages import write_config
from pipeline.drawing.pictures import neighbours_picture
from pipeline.drawing.tiles import save_picture
from pipeline.reporting.records import ImagesEvaluation
from pipeline.scoring.evaluate_job import Job
from pipeline.scoring.evaluation import evaluate
from pipeline.scoring.extractors import check_weights, load_extractor
from pipeline.scoring.image_sets import ImageSet
from pipeline.scoring.measure import Work
from pipeline.scoring.neighbours import Neighbours


def work(job: Job, start_time: float) -> None:
    """Score the images on every rank; rank 0 prints the scores and writes the files.

    `start_time`: of the step, by time.monotonic().
    """
    # The keys, from the first second
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
        if evaluated := evaluate(Work(job.inputs, extractor, job.config, group)):
            seconds = round(time.monotonic() - start_time, 1)
            result = evaluated.scores.model_copy(update={"seconds": seconds})
            write(job, result, evaluated.neighbours)
            show(result)
        group.barrier()


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
