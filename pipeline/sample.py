"""Sample images: weights.safetensors -> images.npy, labels.npy, grid.png, strip.png, sample.json.

    torchrun --standalone --nproc-per-node=4 -m pipeline.sample weights=W.safetensors seed=0

Image k is a function of (weights, sampler, seed, k): its noise comes from (seed, k) and its class
is k modulo the number of classes or comes from (seed, k) too, whatever the batch size and the
number of ranks. Finished batches are kept in `shards/` until all are there, so an interrupted run
goes on.
"""

import math
import os
import shutil
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline import execution, grids, locks, noise, solver, strip
from pipeline.config import stage_keys
from pipeline.data import to_uint8
from pipeline.distributed import Ranks, StopFlag, ranks
from pipeline.errors import OneRankError, Stopped, run_main
from pipeline.files import atomic_stream, load_npy, save_npy, sha256_json, write_json
from pipeline.grid import save_grid
from pipeline.guidance import Field
from pipeline.handover import hand_over
from pipeline.keys import Model
from pipeline.layout import write_config
from pipeline.metering import Progress
from pipeline.sample_job import WORDS, Job, Weights, prepare
from pipeline.samplers import rounding_note, sampler_name
from pipeline.unet import UNet

GRID_ROWS, GRID_COLUMNS = 10, 10  # classes and samples of a class in grid.png


Networks = tuple[nn.Module, nn.Module | None]  # the one that is sampled, and its guide


def preflight(argv: list[str], world: int) -> None:
    """What the launcher runs before any rank: checks, and waits for another sampler to end."""
    locks.wait_until_free(prepare(argv).out)


def build(job: Job, group: Ranks) -> Networks:
    """The network and its guide, ready to evaluate."""
    execution.set_float32(job.config.sample.precision, group.device)
    guide = None if job.guide is None else build_net(job, job.guide, group)
    return build_net(job, job.weights, group), guide


def build_net(job: Job, weights: Weights, group: Ranks) -> nn.Module:
    """One network with its averaged weights."""
    model = Model.model_validate(weights.about["config"]["model"])
    net = UNet(model, len(weights.record["classes"]))
    net.load_state_dict(weights.state)
    net.eval().requires_grad_(False)
    return execution.prepare(net, group.device, job.config.runtime.compile, group.first)


def begin(
    job: Job, networks: Networks, index: np.ndarray, device: torch.device
) -> tuple[Field, Tensor]:
    """The velocity field of the images with the given indices, and their first state (B,3,H,W)."""
    sample, record = job.config.sample, job.weights.record
    shape, no_class = (3, record["resolution"], record["resolution"]), len(record["classes"])
    x0 = noise.normal(job.seed, noise.SAMPLE_NOISE, torch.from_numpy(index).to(device), shape)
    x0 = x0.contiguous(memory_format=execution.memory_format(device))
    classes = torch.from_numpy(job.labels(index)).to(device)
    labels = torch.where(classes < 0, no_class, classes)
    net, guide = networks
    field = Field(sample, net, labels, None if job.weights.classes is None else no_class, guide)
    return field, grids.start_state(x0, grids.times(sample))


def pixels(x: Tensor) -> np.ndarray:
    """States (B,3,H,W) in [-1,1] as images uint8 (B,H,W,3) in host memory."""
    return to_uint8(x).permute(0, 2, 3, 1).contiguous().cpu().numpy()


@torch.inference_mode()
def sample_images(
    job: Job, networks: Networks, index: np.ndarray, device: torch.device
) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (B,H,W,3) with the given indices, and the network evaluations (B,) of each.

    Raises UserError where their velocity is not finite, or a step underflows.
    """
    sample, which = job.config.sample, f"images {index[0]} to {index[-1]} of seed {job.seed}"
    field, x = begin(job, networks, index, device)
    grid = grids.times(sample)
    try:
        x = solver.solve(sample.solver, field, x, grid, sample.rtol, sample.atol).x
    except ArithmeticError as error:
        raise OneRankError(f"{which} cannot be sampled: {error}") from error
    if not x.isfinite().all():
        raise OneRankError(
            f"{which} are not finite: take weights from before the training failed, or another "
            "sample.precision"
        )
    return pixels(x), field.evaluations.cpu().numpy()


@torch.inference_mode()
def states(
    job: Job, networks: Networks, index: np.ndarray, device: torch.device
) -> tuple[list[float], np.ndarray]:
    """Times (T,) on the way to the images with the given indices, and states uint8 (T,B,H,W,3)."""
    field, x = begin(job, networks, index, device)
    times, columns = zip(*strip.states(job.config.sample, field, x), strict=True)
    return list(times), np.stack([pixels(column) for column in columns])


def save_strip(job: Job, networks: Networks, device: torch.device) -> None:
    """Write strip.png: how the first images come out of their noise."""
    index = np.arange(min(strip.ROWS, job.config.sample.num), dtype=np.int64)
    size = job.config.runtime.sample_batch
    parts = [states(job, networks, index[k : k + size], device) for k in index[::size]]
    images = np.concatenate([part for _, part in parts], axis=1)
    names = strip.row_names(job.labels(index), job.weights.classes)
    strip.save_strip(job.out / "strip.png", parts[0][0], images, names)


def shard_folder(job: Job) -> Path:
    """Where finished batches wait: named by all that their content depends on."""
    keys = stage_keys(job.config, "sample")["sample"]
    work: dict[str, Any] = {"weights": job.weights.sha256, "guide": job.guide_sha256, "keys": keys}
    work |= {"seed": job.seed, "batch": job.config.runtime.sample_batch}
    return job.out / "shards" / sha256_json(work)[:12]


def shard_file(shards: Path, start: int) -> Path:
    """The finished batch whose first image has index `start`."""
    return shards / f"{start:08d}.npz"


def sample_shards(job: Job, networks: Networks, group: Ranks, shards: Path) -> float:
    """Sample every batch that is not in `shards` yet, this rank's share; returns images/s."""
    stop = StopFlag(group)
    num, size = job.config.sample.num, job.config.runtime.sample_batch
    starts = list(range(0, num, size))[group.rank :: group.world]
    rounds = math.ceil(num / (size * group.world))  # the same on all ranks, for the stop flag
    kept = sum(shard_file(shards, start).exists() for start in range(0, num, size))
    there = min(num, size * kept)
    progress = Progress("sample", num, job.config.runtime.progress_seconds, there)
    made = 0
    for number in range(rounds):
        if number < len(starts):
            index = np.arange(starts[number], min(starts[number] + size, num), dtype=np.int64)
            path = shard_file(shards, starts[number])
            if not path.exists():
                images, evaluations = sample_images(job, networks, index, group.device)
                with atomic_stream(path) as stream:
                    np.savez(stream, images=images, evaluations=evaluations)
                made += len(index)
        if group.first and progress.due():
            progress.show(min(there + made * group.world, num))
        if stop.agree()[0] and number < rounds - 1:
            raise Stopped("finished batches are kept; the same command goes on")
    return made / (time.monotonic() - progress.began)


def join_images(job: Job, shards: Path) -> np.ndarray:
    """Stream the shards into images.npy; returns the network evaluations of each image (N,)."""
    num, batch = job.config.sample.num, job.config.runtime.sample_batch
    size = job.weights.record["resolution"]
    header = {"descr": "|u1", "fortran_order": False, "shape": (num, size, size, 3)}
    evaluations = []
    with atomic_stream(job.out / "images.npy") as stream:
        np.lib.format.write_array_header_1_0(stream, header)
        for start in range(0, num, batch):
            with np.load(shard_file(shards, start), allow_pickle=False) as part:
                stream.write(np.ascontiguousarray(part["images"]).data)
                evaluations.append(part["evaluations"])
    return np.concatenate(evaluations)


def collect(job: Job, shards: Path) -> np.ndarray:
    """Write images, labels and grid from the shards (rank 0); returns the evaluations (N,)."""
    evaluations = join_images(job, shards)
    labels = job.labels(np.arange(job.config.sample.num, dtype=np.int64))
    save_npy(job.out / "labels.npy", labels)
    images, classes = load_npy(job.out / "images.npy"), job.weights.record["classes"]
    save_grid(job.out / "grid.png", images, labels, classes, GRID_ROWS, GRID_COLUMNS)
    return evaluations


def describe(job: Job, evaluations: np.ndarray, run: dict[str, Any]) -> dict[str, Any]:
    """The content of sample.json; `run` is what depends on the machine."""
    keys, weights = job.config.sample, job.weights
    return run | {
        "sampler": sampler_name(keys),
        "config": stage_keys(job.config, "sample"),
        "seed": job.seed,
        "num": keys.num,
        "guidance": keys.guidance,
        "precision": keys.precision,
        "nfe_mean": float(evaluations.mean()),
        "nfe_max": int(evaluations.max()),
        "weights_sha256": weights.sha256,
        "guide_sha256": job.guide_sha256,
        "train": {k: weights.about[k] for k in ("images", "gpu_hours", "config", "torch")},
        "data": weights.record,
    }


def finish(job: Job, networks: Networks, group: Ranks, shards: Path, run: dict[str, Any]) -> None:
    """Write the declared outputs, sample.json the last, and remove the shards (rank 0).

    An older sample.json goes first: it never stands beside images that it is not about. So do
    files that a killed run had begun.
    """
    for old in [job.out / "sample.json", *job.out.glob(".*.tmp")]:
        old.unlink(missing_ok=True)
    evaluations = collect(job, shards)
    save_strip(job, networks, group.device)
    name = torch.cuda.get_device_name() if group.device.type == "cuda" else "CPU"
    run = run | {"world_size": group.world, "device": name}
    write_config(job.out, job.config, "sample")
    write_json(job.out / "sample.json", describe(job, evaluations, run))
    shutil.rmtree(shards.parent)
    print(f"sample: {job.config.sample.num:,} images in {run['seconds']:.0f} s, {job.out}")


def main(argv: list[str]) -> None:
    """Entry point of every rank."""
    hand_over("pipeline.sample", argv, WORDS)
    began = time.monotonic()
    job = prepare(argv)
    runtime, shards = job.config.runtime, shard_folder(job)
    lock = locks.locked(job.out) if os.environ.get("RANK", "0") == "0" else nullcontext()
    with lock, ranks(runtime.device) as group:
        at_once = runtime.sample_batch
        with execution.enough_memory(at_once, "runtime.sample_batch", group.device):
            networks = build(job, group)
            if group.first and (note := rounding_note(job.config.sample)):
                print(f"note: {note}", flush=True)
            mine = sample_shards(job, networks, group, shards)
        speed = float(group.mean(torch.tensor(mine, device=group.device))) * group.world
        group.barrier()
        if group.first:
            run = {"images_per_s": speed or None, "seconds": time.monotonic() - began}
            finish(job, networks, group, shards, run)
        group.barrier()


if __name__ == "__main__":
    run_main(main)
