"""Sample images: weights.safetensors -> images.npy, labels.npy, grid.png, sample.json.

    torchrun --standalone --nproc-per-node=4 -m pipeline.sample weights=W.safetensors seed=0

Image k is a function of (weights, sampler, seed, k): its noise comes from (seed, k) and its class
is k modulo the number of classes, whatever the batch size and the number of ranks. Finished
batches are kept in `shards/` until all are there, so an interrupted run goes on.
"""

import math
import os
import shutil
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline import checkpoint, execution, flow, locks, noise, solver
from pipeline.config import load_step, stage_keys
from pipeline.data import to_uint8
from pipeline.distributed import Ranks, StopFlag, ranks
from pipeline.errors import Stopped, UserError, run_main
from pipeline.files import (
    atomic_stream,
    save_npy,
    sha256_file,
    sha256_json,
    write_json,
)
from pipeline.grid import save_grid
from pipeline.keys import Config, Model
from pipeline.layout import run_folder, sampler_name, weights_file, write_config
from pipeline.metering import Progress
from pipeline.unet import UNet

WORDS = ("weights", "seed", "out")
GRID_ROWS, GRID_COLUMNS = 10, 10  # classes and samples of a class in grid.png


@dataclass(frozen=True)
class Job:
    """All that is known before the first image."""

    config: Config
    weights: dict[str, Tensor]
    about: dict[str, Any]  # the weights' metadata: training keys and data
    weights_sha256: str
    seed: int
    out: Path

    @property
    def classes(self) -> list[str]:
        """Class names in label order."""
        names: list[str] = self.about["record"]["classes"]
        return names

    @property
    def conditional(self) -> bool:
        """Whether the network knows classes."""
        return bool(self.about["config"]["model"]["class_conditional"])

    @property
    def guided(self) -> bool:
        """Whether every evaluation needs the network with and without the class."""
        return self.conditional and self.config.sample.guidance != 1

    def labels(self, index: np.ndarray) -> np.ndarray:
        """Class of each image index (int64): balanced over the classes, -1 where there are none."""
        return index % len(self.classes) if self.conditional else np.full_like(index, -1)


def prepare(argv: list[str]) -> Job:
    """Read the configuration and the weights; raises UserError about the first problem."""
    config, own = load_step(argv, WORDS)
    try:
        seed = int(own.get("seed", config.sample.seeds[0]))
    except ValueError as error:
        raise UserError(f"seed={own['seed']} is not a whole number") from error
    path = Path(own["weights"]) if "weights" in own else weights_file(config)
    weights, about = checkpoint.load_weights(path)
    check_halflife(config.sample.ema_halflife_images, about, path)
    folder = run_folder(config) / "sample" / sampler_name(config.sample) / f"seed{seed}"
    out = Path(own.get("out", folder))
    return Job(config, weights, about, sha256_file(path), seed, out)


def check_halflife(wanted: int | None, about: dict[str, Any], path: Path) -> None:
    """Raise UserError where the weights are averaged with another half-life than `wanted`."""
    there = about.get("ema_halflife_images")
    if wanted is not None and wanted != there:
        raise UserError(
            f"weights {path} are averaged with a half-life of {there} images, "
            f"not sample.ema_halflife_images={wanted}: give another file, or null"
        )


def preflight(argv: list[str], world: int) -> None:
    """What the launcher runs before any rank: checks, and waits for another sampler to end."""
    locks.wait_until_free(prepare(argv).out)


def build_net(job: Job, group: Ranks) -> torch.nn.Module:
    """The network with its averaged weights, ready to evaluate."""
    execution.set_float32(job.config.sample.precision, group.device)
    net = UNet(Model.model_validate(job.about["config"]["model"]), len(job.classes))
    net.load_state_dict(job.weights)
    net.eval().requires_grad_(False)
    return execution.prepare(net, group.device, job.config.runtime.compile, group.first)


def velocity_field(job: Job, net: torch.nn.Module, labels: Tensor) -> solver.Velocity:
    """The (guided) velocity of images with classes `labels` (B,); both branches in one call."""
    sample, none = job.config.sample, len(job.classes)

    def velocity(x: Tensor, t: Tensor, rows: Tensor) -> Tensor:
        t, known = t.to(x.dtype), labels[rows]
        with execution.autocast(sample.precision, x.device):
            if not job.guided:
                return net(x, t, known).to(x.dtype)
            both = torch.cat([known, torch.full_like(known, none)])
            pair = net(torch.cat([x, x]), torch.cat([t, t]), both).to(x.dtype)
        conditional, unconditional = pair.chunk(2)
        return flow.guided(conditional, unconditional, sample.guidance)

    return velocity


@torch.inference_mode()
def sample_images(
    job: Job, net: torch.nn.Module, index: np.ndarray, device: torch.device
) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (B,H,W,3) with the given indices, and the network evaluations (B,) of each."""
    keys, size = job.config.sample, job.about["record"]["resolution"]
    place = torch.from_numpy(index).to(device)
    x0 = noise.normal(job.seed, noise.SAMPLE_NOISE, place, (3, size, size))
    labels = torch.from_numpy(job.labels(index)).to(device)
    labels = torch.where(labels < 0, len(job.classes), labels)
    field = velocity_field(job, net, labels)
    x0 = x0.contiguous(memory_format=execution.memory_format(device))
    result = solver.solve(keys.solver, field, x0, keys.steps, keys.rtol, keys.atol)
    images = to_uint8(result.x).permute(0, 2, 3, 1).contiguous().cpu().numpy()
    return images, result.evaluations.cpu().numpy() * (2 if job.guided else 1)


def shard_file(shards: Path, start: int) -> Path:
    """The finished batch whose first image has index `start`."""
    return shards / f"{start:08d}.npz"


def sample_shards(job: Job, group: Ranks, shards: Path) -> float:
    """Sample every batch that is not in `shards` yet, this rank's share; returns images/s."""
    stop = StopFlag(group)
    net = build_net(job, group)
    num, size = job.config.sample.num, job.config.runtime.sample_batch
    starts = list(range(0, num, size))[group.rank :: group.world]
    rounds = math.ceil(num / (size * group.world))  # the same on all ranks, for the stop flag
    progress = Progress("sample", num, job.config.runtime.progress_seconds)
    made = 0
    for number in range(rounds):
        if number < len(starts):
            index = np.arange(starts[number], min(starts[number] + size, num), dtype=np.int64)
            path = shard_file(shards, starts[number])
            if not path.exists():
                images, evaluations = sample_images(job, net, index, group.device)
                with atomic_stream(path) as stream:
                    np.savez(stream, images=images, evaluations=evaluations)
                made += len(index)
        if group.first and progress.due():
            progress.show(min(made * group.world, num))
        if stop.agree()[0] and number < rounds - 1:
            raise Stopped("finished batches are kept; the same command goes on")
    return made / (time.monotonic() - progress.began)


def collect(
    job: Job, shards: Path, speed: float | None, seconds: float, world: int, device: str
) -> None:
    """Join the shards into the declared outputs and remove them (rank 0)."""
    num, batch = job.config.sample.num, job.config.runtime.sample_batch
    size = job.about["record"]["resolution"]
    images = np.empty((num, size, size, 3), dtype=np.uint8)
    evaluations = np.empty(num, dtype=np.int64)
    for start in range(0, num, batch):
        with np.load(shard_file(shards, start), allow_pickle=False) as part:
            images[start : start + batch] = part["images"]
            evaluations[start : start + batch] = part["evaluations"]
    labels = job.labels(np.arange(num, dtype=np.int64))
    save_npy(job.out / "images.npy", images)
    save_npy(job.out / "labels.npy", labels)
    save_grid(job.out / "grid.png", images, labels, job.classes, GRID_ROWS, GRID_COLUMNS)
    keys = job.config.sample
    about = {
        "sampler": sampler_name(keys),
        "config": stage_keys(job.config, "sample"),
        "seed": job.seed,
        "num": num,
        "guidance": keys.guidance,
        "precision": keys.precision,
        "nfe_mean": float(evaluations.mean()),
        "nfe_max": int(evaluations.max()),
        "images_per_s": speed,
        "seconds": seconds,
        "world_size": world,
        "device": device,
        "weights_sha256": job.weights_sha256,
        "train": {k: job.about[k] for k in ("images", "gpu_hours", "config", "torch")},
        "data": job.about["record"],
    }
    write_config(job.out, job.config, "sample")
    write_json(job.out / "sample.json", about)
    shutil.rmtree(shards.parent)


def main(argv: list[str]) -> None:
    """Entry point of every rank."""
    began = time.monotonic()
    job = prepare(argv)
    runtime = job.config.runtime
    work = {"weights": job.weights_sha256, "keys": stage_keys(job.config, "sample")["sample"]}
    work |= {"seed": job.seed, "batch": runtime.sample_batch}
    shards = job.out / "shards" / sha256_json(work)[:12]
    first = os.environ.get("RANK", "0") == "0"
    lock = locks.locked(job.out) if first else nullcontext()
    with lock, ranks(runtime.device) as group:
        with execution.enough_memory(runtime.sample_batch, "runtime.sample_batch", group.device):
            mine = sample_shards(job, group, shards)
        speed = float(group.mean(torch.tensor(mine, device=group.device))) * group.world
        group.barrier()
        if first:
            seconds = time.monotonic() - began
            name = torch.cuda.get_device_name() if group.device.type == "cuda" else "CPU"
            collect(job, shards, speed or None, seconds, group.world, name)
            print(f"sample: {job.config.sample.num:,} images in {seconds:.0f} s, {job.out}")
        group.barrier()


if __name__ == "__main__":
    run_main(main)
