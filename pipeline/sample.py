"""Sample images: weights.safetensors -> images.npy, labels.npy, grid.png, strip.png, sample.json.

    torchrun --standalone --nproc-per-node=4 -m pipeline.sample weights=W.safetensors seed=0

Image k is a function of (weights, sampler, seed, k): its noise comes from (seed, k) and its class
is k modulo the number of classes or comes from (seed, k) too, whatever the batch size and the
number of ranks. Finished batches are kept in `shards/` until all are there, so an interrupted run
goes on.
"""

import os
import shutil
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.base import locks
from pipeline.base.errors import run_main
from pipeline.base.files import write_json
from pipeline.compute import execution
from pipeline.compute.distributed import Ranks, ranks
from pipeline.config.samplers import rounding_note, sampler_name
from pipeline.config.stages import stage_keys, write_config
from pipeline.launching.handover import hand_over
from pipeline.sampling.job import WORDS, Job, prepare
from pipeline.sampling.network import Networks, build, save_strip
from pipeline.sampling.shards import collect, sample_shards, shard_folder


def preflight(argv: list[str], world: int) -> None:
    """What the launcher runs before any rank: checks, and waits for another sampler to end."""
    locks.wait_until_free(prepare(argv).out)


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
        "data": weights.record.to_json(),
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
