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
images without any content get (ceiling). The kernel distance and precision/recall need features,
not moments, so they compare n samples with B.
"""

import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from pipeline.base.errors import UserError, run_main
from pipeline.base.files import write_json
from pipeline.compute.distributed import Ranks, ranks
from pipeline.config.load import load_step
from pipeline.config.paths import out_file, record_file, reference_file, run_folder, samples_folder
from pipeline.config.schema import Config
from pipeline.config.stages import write_config
from pipeline.drawing.pictures import neighbours_picture
from pipeline.drawing.tiles import save_picture
from pipeline.images.sources.find import resolve_image_set
from pipeline.launching.handover import hand_over
from pipeline.reporting.records import Entry
from pipeline.scoring.extractors import KINDS, Extractor, load_extractor
from pipeline.scoring.inputs import Inputs, check_weights, read_any, read_inputs
from pipeline.scoring.measure import Accuracy, Parts, Work, measure, split, why_no_accuracy
from pipeline.scoring.neighbours import Neighbours
from pipeline.scoring.references import Reference
from pipeline.scoring.scores import HELD, all_scores

WORDS = ("samples", "record", "reference", "out", "images", "across")


@dataclass(frozen=True)
class Job:
    """All that is known before the first image is looked at."""

    config: Config
    inputs: Inputs
    reference: Path
    out: Path | None  # where the scores go; None: they are printed alone
    run: bool  # whether these are the samples of a run of ours


def prepare(argv: list[str]) -> Job:
    """Read and check everything; paths not given follow from the config and its first seed."""
    config, own = load_step(argv, WORDS)
    config = resolve_image_set(config)
    KINDS[config.evaluate.extractor].find(config.evaluate.weights)
    across, out = own.get("across"), own.get("out")
    if "images" in own:
        if "reference" not in own:
            raise UserError("images=PATH needs reference=PATH: give what they are compared with")
        reference = Path(own["reference"])
        inputs = read_any(config, Path(own["images"]), reference, across)
        return Job(config, inputs, reference, out_file(Path(out)) if out else None, False)
    samples = Path(own.get("samples", samples_folder(config, config.sample.seeds[0])))
    default_out = run_folder(config) / "metrics" / f"{samples.parent.name}-{samples.name}.json"
    record = Path(own.get("record", record_file(config)))
    reference = Path(own.get("reference", reference_file(config)))
    inputs = read_inputs(config, samples, record, reference, across)
    return Job(config, inputs, reference, out_file(Path(out or default_out)), True)


def preflight(argv: list[str], world: int) -> None:
    """What the launcher runs before any rank: all checks that need no network."""
    prepare(argv)


# --- result ------------------------------------------------------------------------------------


def remarks(job: Job, extractor: Extractor, parts: Parts | None) -> list[str]:
    """What a reader of the scores must know."""
    settings, notes = job.config.evaluate, list(job.inputs.notes)
    if not extractor.known_weights:
        notes.append(
            f"the weights file of {extractor.title} is not the published one: compare only with "
            f"scores by the same file (sha256 {extractor.weights_sha256[:8]}…)"
        )
    if "isc" in settings.metrics and not extractor.has_logits:
        notes.append(
            f"the Inception score is left out: these weights of {extractor.title} have no last "
            "layer of the Inception network"
        )
    if parts is None:
        notes.append(
            "kernel distance, precision, recall and the bracket of the distance are left out: the "
            "reference holds statistics and no images"
        )
    return notes + remarks_on_numbers(job, parts)


def remarks_on_numbers(job: Job, parts: Parts | None) -> list[str]:
    """Notes where fewer images are compared than one might think."""
    settings, notes = job.config.evaluate, []
    num = 0 if parts is None else len(parts.a)
    if num > HELD and {"kid", "prc"} & set(settings.metrics):
        notes.append(
            f"kernel distance, precision and recall compare {HELD:,} images a side in place of "
            f"{num:,}: no more features are held"
        )
    if 0 < num < settings.kid_subset_size and "kid" in settings.metrics:
        notes.append(
            f"kid_subset_size is {num} in place of {settings.kid_subset_size}: there are no more "
            "images on each side"
        )
    return notes


def protocol(job: Job, extractor: Extractor, parts: Parts | None, reference: Reference) -> Entry:
    """All that the scores depend on but the samples themselves."""
    settings = job.config.evaluate
    num = settings.kid_subset_size if parts is None else min(len(parts.a), HELD)
    return {
        "extractor": extractor.name,
        "weights_sha256": extractor.weights_sha256,
        "reference": job.inputs.about,
        "kid_subsets": settings.kid_subsets,
        "kid_subset_size": min(settings.kid_subset_size, num),
        "isc_splits": settings.isc_splits,
        "prc_neighbourhood": settings.prc_neighbourhood,
        "seed": settings.seed,
        # without +cpu or +cu130: the machine is no part of the protocol
        "versions": {
            "torch": torch.__version__.partition("+")[0],
            "torch_fidelity": version("torch-fidelity"),
        },
    }


def accuracy_entry(accuracy: Accuracy | None) -> Entry | None:
    """The class accuracy of the samples with that of real images (`floor`)."""
    if accuracy is None:
        return None
    num = int(accuracy.samples.counts[0].sum())
    return {**accuracy.samples.shares(), "num_images": num, "floor": accuracy.real.shares()}


def evaluate(job: Job, extractor: Extractor, group: Ranks) -> tuple[Entry, Neighbours | None]:
    """The scores of the images with everything they depend on; on other ranks than 0 nothing."""
    inputs, seed = job.inputs, job.config.evaluate.seed
    parts = split(len(inputs.images), len(inputs.real), seed) if inputs.real else None
    why_not = why_no_accuracy(inputs, parts)
    work = Work(inputs, extractor, job.config, group)
    measured, accuracy, neighbours = measure(work, parts, not why_not)
    if not group.first:
        return {}, None
    result = {
        "metrics": all_scores(measured, extractor, job.config.evaluate),
        "class_accuracy": accuracy_entry(accuracy),
        "neighbours": neighbours.entry() if neighbours else None,
        "notes": remarks(job, extractor, parts) + ([why_not] if why_not and job.run else []),
        "protocol": protocol(job, extractor, parts, measured.reference),
        "sample": inputs.how,
    }
    return result, neighbours


def show(result: Entry) -> None:
    """Print one line a score, then the notes."""
    for score in result["metrics"]:
        line = f"{score['label']}: {score['value']:.4g}"
        if "bracket" in score:
            near = score["bracket"]
            line += f" (at {near['num_images']:,} images: floor {near['floor']:.4g}, "
            line += f"value {near['value']:.4g}, ceiling {near['ceiling']:.4g})"
        if "real" in score:
            line += f" (real images: {score['real']:.4g})"
        print(line)
    if result["class_accuracy"]:
        share, real = result["class_accuracy"], result["class_accuracy"]["floor"]
        print(f"Class accuracy: {share['overall']:.4g} (real images: {real['overall']:.4g})")
    for note in result["notes"]:
        print(f"note: {note}")


def write(job: Job, result: Entry, neighbours: Neighbours | None) -> None:
    """Write the result and, beside it, the picture of the neighbours."""
    if job.out is None:
        return
    if neighbours and job.inputs.real:
        samples = job.inputs.images.read(neighbours.rows)
        rows = neighbours.real_rows
        real = job.inputs.real.read(rows.ravel()).reshape(*rows.shape, *samples.shape[1:])
        path = job.out.with_name(f"{job.out.stem}-neighbours.png")
        distances, caption = neighbours.distances, neighbours.caption()
        save_picture(path, neighbours_picture(np.asarray(samples), real, distances, caption))
    if job.run:
        write_config(job.out.parent, job.config, "evaluate")
    write_json(job.out, result)


def main(argv: list[str]) -> None:
    """Entry point of every rank."""
    hand_over("pipeline.evaluate", argv, WORDS)
    start = time.monotonic()
    job = prepare(argv)
    settings = job.config.evaluate
    with ranks(job.config.runtime.device) as group:
        extractor = load_extractor(settings.extractor, settings.weights, group.device)
        if job.inputs.reference:
            check_weights(job.inputs.reference, extractor, job.reference)
        result, neighbours = evaluate(job, extractor, group)
        if group.first:
            result["seconds"] = round(time.monotonic() - start, 1)
            write(job, result, neighbours)
            show(result)
        group.barrier()


if __name__ == "__main__":
    run_main(main)
