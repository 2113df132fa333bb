"""The search on all ranks, and the files that it leaves."""

import os
import shutil
from contextlib import ExitStack
from pathlib import Path

from pipeline.base import locks
from pipeline.base.files import atomic, atomic_stream, sha256_file
from pipeline.compute.distributed import StopFlag, ranks
from pipeline.config.samplers import sampler_name
from pipeline.config.selection import searched
from pipeline.config.stages import write_config
from pipeline.drawing.surface import in_words, surface_chart
from pipeline.reporting.trials import Choice, Try
from pipeline.sampling.shards import checksums
from pipeline.scoring.extractors import check_weights, load_extractor
from pipeline.scoring.kinds import KINDS
from pipeline.trials.candidates import Candidates
from pipeline.trials.points import Points
from pipeline.trials.search import search
from pipeline.trials.select_job import Job
from pipeline.trials.trial import Judge


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
