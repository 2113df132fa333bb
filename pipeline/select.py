"""EMA width, guidance weight and interval chosen after the training: `select`.

    torchrun --standalone --nproc-per-node=4 -m pipeline.select experiment=edm2_s \
        'select.ema_widths=[0.03,0.15]' 'select.guidance=[1,3]'

Each try is a few samples of the sampler in `sample`, without its runs, with seeds that are not
among those reported, and their Fréchet distance to the whole reference. Trials are kept in
`trials/`, so a killed search resumes, and a longer one repeats none of them. Writes choice.json,
surface.png and, if it searched for a width, weights.safetensors, the chosen average. Samplers with
sample.selected=true use them.
"""

import os
import shutil
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.base import locks
from pipeline.base.errors import UserError, run_main
from pipeline.base.files import atomic, atomic_stream, sha256_file
from pipeline.compute.distributed import StopFlag, ranks
from pipeline.config.load import load_step
from pipeline.config.paths import choice_file, out_folder, record_file, reference_file
from pipeline.config.samplers import sampler_name
from pipeline.config.schema import Config
from pipeline.config.selection import base_sampler, most_guided, searched
from pipeline.config.stages import rank_keys, write_config
from pipeline.data.pack import Record
from pipeline.drawing.surface import in_words, surface_chart
from pipeline.images.sources.find import resolve_image_set
from pipeline.launching.handover import hand_over
from pipeline.reporting.trials import Choice, Try
from pipeline.sampling import job as sampling
from pipeline.sampling.shards import checksums
from pipeline.scoring.extractors import KINDS, load_extractor
from pipeline.scoring.inputs import check_reference, check_weights
from pipeline.scoring.references import Reference, load_reference
from pipeline.steps import STEPS
from pipeline.training.averaging import Stored, find_stored, needed
from pipeline.trials.candidates import Candidates
from pipeline.trials.points import Points
from pipeline.trials.search import search
from pipeline.trials.trial import Judge

STEP = STEPS["select"]
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
    def identity(self) -> dict[str, Any]:
        """What all ranks must have in common."""
        return {**self.sampling.identity, **rank_keys(self.config, "select")}


def prepare(argv: list[str]) -> Job:
    """Read and check everything; raises UserError about the first problem."""
    return job_of(*load_step(argv, STEP.words))


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
    keys: dict[str, Any] = {"num": config.select.num, "guidance": most_guided(config).guidance}
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


def preflight(config: Config, paths: dict[str, str], world: int) -> dict[str, Any]:
    """Check what needs no GPU, and wait for another search in this folder to end."""
    job = job_of(config, paths)
    locks.wait_until_free(job.sampling.out)
    return job.identity


def work(job: Job) -> None:
    """Search on every rank; rank 0 writes the files."""
    config, out = job.config, job.sampling.out
    assert config.select is not None
    with ExitStack() as stack:
        # One search per folder
        if os.environ.get("RANK", "0") == "0":
            stack.enter_context(locks.locked(out))
            write_config(out, config, "select")
        device, join_seconds = config.runtime.device, config.launch.join_seconds
        group = stack.enter_context(ranks(device, job.identity, join_seconds))

        # What measures
        settings = config.evaluate
        extractor = load_extractor(settings.extractor, settings.weights, group.device)
        group.agree({"sha256 of the extractor": extractor.weights_sha256})
        check_weights(job.reference, extractor, job.reference_file)
        points = Points(out / "trials", Judge(extractor, job.reference, group, StopFlag(group)))

        # The search
        sums, seeds = checksums(job.sampling, group), config.select.seeds
        candidates = Candidates(job.sampling, sums, points, job.stored, job.images, seeds)
        best = search(config.select, config.sample, candidates.distance)
        average = candidates.average(best.ema_width) if job.stored is not None else None
        if group.first:
            finish(job, candidates, candidates.tried[best], average)
        group.barrier()


def finish(job: Job, candidates: Candidates, best: Try, average: Path | None) -> None:
    """Write the choice, the last of the files, and remove averages (rank 0)."""
    config, out = job.config, job.sampling.out
    assert config.select is not None
    if average is not None:
        with atomic(out / "weights.safetensors") as temporary:
            shutil.copyfile(average, temporary)
    choice = Choice(
        searched=searched(config),
        chosen=best,
        search=config.select.search,
        tries=list(candidates.tried.values()),
        num=config.select.num,
        seeds=list(config.select.seeds),
        sampler=sampler_name(config.sample.model_copy(update={"selected": True})),
        metric=f"Fréchet distance, {KINDS[config.evaluate.extractor].title}",
        extractor=config.evaluate.extractor,
        images=job.images or None,
        weights=candidates.sums.weights,
        guide=candidates.sums.guide,
        average=None if average is None else sha256_file(average),
    )
    with atomic_stream(out / "surface.png") as stream:
        stream.write(surface_chart(choice.sampler, choice.metric, choice.tries, best))
    choice.write(out / "choice.json")
    for old in (out / "trials").glob("*.safetensors"):
        old.unlink()
    print(f"select: {in_words(best)} chosen by {len(choice.tries)} tries: {out}", flush=True)


def main(argv: list[str]) -> None:
    """Entry point of every rank."""
    hand_over(STEP.module, argv, STEP.words)
    work(prepare(argv))


if __name__ == "__main__":
    run_main(main)
