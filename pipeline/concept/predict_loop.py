"""Predictions on every rank, from weights to the folder of predictions."""

import os
import time
from contextlib import ExitStack
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import torch

from pipeline.base import locks
from pipeline.base.errors import OneRankError, UserError
from pipeline.base.files import sha256_file
from pipeline.base.npy import save_npy, write_header
from pipeline.base.progress import Progress
from pipeline.compute import execution
from pipeline.compute.distributed import Ranks, ranks
from pipeline.concept.families import Predictor, network, predictor
from pipeline.concept.pack import check_arrays, pack_folder
from pipeline.concept.predict_job import Job
from pipeline.concept.predictions import PredictAbout
from pipeline.concept.targets import Targets, targets
from pipeline.config.model_keys import DecoderKeys, read_model
from pipeline.config.stages import stage_keys, write_config
from pipeline.reporting.records import StartAbout, TrainAbout
from pipeline.training.weights_file import load_weights

MAKING = ".predicted.making"  # the file that the ranks write
FLOAT = "<f4"


def work(job: Job) -> None:
    """Predict on every rank; rank 0 writes the files of `job.out`."""
    # One run per folder
    start_time = time.monotonic()
    with ExitStack() as stack:
        if os.environ.get("RANK", "0") == "0":
            stack.enter_context(locks.locked(job.out))
            check_arrays(pack_folder(job.config), job.documents.record)
            write_config(job.out, job.config, "predict")
        device, join_seconds = job.config.runtime.device, job.config.launch.join_seconds
        group = stack.enter_context(ranks(device, job.identity, join_seconds))
        digest = weights_sha256(job, group)

        # Predictions of all ranks, in one file
        chosen = chosen_targets(job)
        making = job.out / MAKING
        if group.first:
            prepare_file(making, len(chosen.rows), job.documents.record.dimension)
        group.barrier()
        batch = job.config.runtime.sample_batch
        with execution.enough_memory(batch, "runtime.sample_batch", group.device, "pieces"):
            predict(job, build(job, group), chosen, group)
        group.barrier()

        # What they are of
        if group.first:
            cost = Cost(time.monotonic() - start_time, group.world, group.device)
            finish(job, chosen, describe(job, digest, chosen, cost))
        group.barrier()


def weights_sha256(job: Job, group: Ranks) -> str:
    """Hex sha256 of the weights on the first rank of each machine, empty on the others.

    Raises UserError on all ranks if the machines have other files.
    """
    digest = sha256_file(job.weights) if group.first_here else ""
    group.agree({"sha256 of the weights": digest} if digest else {})
    return digest


def chosen_targets(job: Job) -> Targets:
    """The targets that the keys choose; raises UserError if there are none."""
    assert job.config.concept is not None
    chosen = targets(job.documents.offsets, job.config.concept, job.documents.prompts)
    if not len(chosen.rows):
        raise UserError(
            f"no document of two sentences of pack {pack_folder(job.config)} is held out: train "
            f"with a larger share than concept.held_out={job.config.concept.held_out}"
        )
    return chosen


def prepare_file(path: Path, num: int, dimension: int) -> None:
    """A .npy of zeros, float32 (num, dimension), for the ranks to fill."""
    with path.open("wb") as stream:
        write_header(stream, (num, dimension), FLOAT)
        stream.truncate(stream.tell() + num * dimension * np.dtype(FLOAT).itemsize)


def build(job: Job, group: Ranks) -> Predictor:
    """The predictions of the network with its weights."""
    execution.set_float32(job.config.sample.precision, group.device)
    keys, concept = read_model(job.about.section("model")), job.config.concept
    assert isinstance(keys, DecoderKeys) and concept is not None
    net = network(keys, job.documents.normaliser, concept.max_sentences)
    net.load_state_dict(load_weights(job.weights))
    net.eval().requires_grad_(False)
    placed = execution.prepare(net, group.device, job.config.runtime.compile, group.first)
    return predictor(keys, placed, concept)


def write_only(path: Path) -> IO[bytes]:
    """An existing file, opened to write parts of it.

    In mode r+b Python would read and buffer what lies around them, and write that back: zeros over
    what another rank has written meanwhile.
    """
    return os.fdopen(os.open(path, os.O_WRONLY), "wb")


@torch.no_grad()
def predict(job: Job, predicts: Predictor, chosen: Targets, group: Ranks) -> None:
    """Write this rank's share of the predictions, every world-th batch of pieces.

    The batches are the same on any number of ranks, and so, but for rounding, are the numbers.
    """
    size, num = job.config.runtime.sample_batch, len(chosen.pieces.starts)
    counts = chosen.pieces.lengths - chosen.pieces.contexts
    places = np.concatenate([[0], np.cumsum(counts)])  # of a piece's targets
    seconds = job.config.runtime.progress_seconds
    progress = Progress("predict", len(chosen.rows), seconds, unit="sentences")
    row_bytes = np.dtype(FLOAT).itemsize * job.documents.record.dimension
    with write_only(job.out / MAKING) as stream:
        begin = os.fstat(stream.fileno()).st_size - len(chosen.rows) * row_bytes
        for first in range(group.rank * size, num, group.world * size):
            part = slice(first, first + size)
            predicted = predict_batch(job, predicts, chosen, part, group.device)
            check_finite(job, predicted, chosen.documents[int(places[first]) :])
            stream.seek(begin + int(places[first]) * row_bytes)
            stream.write(predicted.astype(FLOAT).tobytes())
            if group.first and progress.due():
                progress.show(int(places[min(first + size * group.world, num)]))
        stream.flush()
        os.fsync(stream.fileno())


def predict_batch(
    job: Job, predicts: Predictor, chosen: Targets, part: slice, device: torch.device
) -> np.ndarray:
    """Predictions (n,D) float32, normalised, of the targets of some pieces, one after the other."""
    # Pieces of the same length, padded
    starts, lengths, contexts = chosen.pieces.part(part)
    assert job.config.concept is not None
    shape = len(starts), job.config.concept.max_sentences, job.documents.record.dimension
    vectors = np.zeros(shape, np.float32)
    for place, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        vectors[place, :length] = job.documents.vectors[start : start + length]

    # What follows each sentence but the last, from the end of the context on
    with execution.autocast(job.config.sample.precision, device):
        rows = starts[:, None] + np.arange(shape[1])
        both = (torch.from_numpy(array).to(device) for array in (vectors, rows))
        predicted = predicts(*both)
    after = np.arange(1, shape[1] + 1)
    is_before_target = (after < lengths[:, None]) & (after >= contexts[:, None])
    result: np.ndarray = predicted.float().cpu().numpy()[is_before_target]
    return result


def check_finite(job: Job, predicted: np.ndarray, documents: np.ndarray) -> None:
    """Raise OneRankError if predictions (n,D), of `documents` (n or more,), are not finite."""
    finite = np.isfinite(predicted).all(1)
    if not finite.all():
        raise OneRankError(
            f"{job.weights} predicts numbers that are not finite for document "
            f"{documents[int(np.argmin(finite))]} of pack {pack_folder(job.config)} with "
            f"sample.precision={job.config.sample.precision}: give fp32, or other weights"
        )


class Cost(NamedTuple):
    """How long it took, on what."""

    seconds: float  # wall time
    world_size: int
    device: torch.device


def describe(job: Job, digest: str, chosen: Targets, cost: Cost) -> PredictAbout:
    """The content of predict.json; `digest` is that of the weights."""
    about = job.about
    start = {"start": StartAbout.parse(about.start, job.weights)} if about.start else {}
    return PredictAbout(
        # What was predicted
        record=job.documents.record,
        normaliser_sha256=job.documents.normaliser.sha256,
        config=stage_keys(job.config, "predict"),
        num_documents=len(np.unique(chosen.documents)),
        num_targets=len(chosen.rows),
        # By what
        weights_sha256=digest,
        train=TrainAbout(
            images=about.images,
            gpu_hours=about.gpu_hours,
            config=about.config,
            torch=about.torch,
            **start,
        ),
        # On what
        seconds=round(cost.seconds, 1),
        device=torch.cuda.get_device_name() if cost.device.type == "cuda" else "CPU",
        world_size=cost.world_size,
    )


def finish(job: Job, chosen: Targets, about: PredictAbout) -> None:
    """Give the files their names, predict.json the last (rank 0).

    An older predict.json is removed first: it never stands beside what it does not describe.
    """
    (job.out / "predict.json").unlink(missing_ok=True)
    (job.out / MAKING).replace(job.out / "predicted.npy")
    save_npy(job.out / "rows.npy", chosen.rows)
    about.write(job.out / "predict.json")
    print(
        f"predict: {about.num_targets:,} sentences of {about.num_documents:,} held-out documents "
        f"in {about.seconds:.0f} s, {job.out}"
    )
