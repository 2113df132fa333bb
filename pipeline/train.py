"""Train the velocity network: pack -> weights.safetensors (averaged) and curve.jsonl.

    torchrun --standalone --nproc-per-node=4 -m pipeline.train data.path=PACK train.lr=2e-4

Everything needed to go on lies in `checkpoints/<hash of the experiment keys>/`, which the workflow
does not declare and so never deletes.
"""

import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from pipeline import checkpoint, execution
from pipeline.config import load_step, merge, stage_keys, validate
from pipeline.data import open_pack
from pipeline.distributed import StopFlag, ranks
from pipeline.errors import Stopped, UserError, run_main
from pipeline.files import read_json, sha256_json
from pipeline.keys import Config
from pipeline.layout import pack_folder, run_folder, write_config
from pipeline.metering import Mark, Metrics, Progress, read_rows, write_rows
from pipeline.sharing import micro_batch
from pipeline.trainer import Job, Trainer

WORDS = ("record", "out")  # paths on the command line


def prepare(argv: list[str], world: int) -> Job:
    """Read and check everything that can be checked without a GPU.

    Raises UserError with one sentence about the first problem.
    """
    config, own = load_step(argv, WORDS)
    if config.data.path and "record" not in own:
        config = adopt_pack(config)
    folder = pack_folder(config)
    record = read_json(Path(own["record"])) if "record" in own else pack_record(folder)
    pack = open_pack(folder, record)
    micro_batch(config, world)
    out = Path(own.get("out", run_folder(config) / "train"))
    steps = -(-config.train.images // config.train.batch)
    return Job(config, pack, out, out / "checkpoints" / identity(config, record), steps)


def preflight(argv: list[str], world: int) -> None:
    """What the launcher runs before any rank: checks, and waits for another trainer to end."""
    checkpoint.wait_until_free(prepare(argv, world).scratch)


def pack_record(folder: Path) -> dict[str, Any]:
    """The record that a pack carries in its own manifest."""
    if not (folder / "manifest.json").exists():
        raise UserError(f"pack {folder} is missing: run `make data` or give data.path=PACK")
    record: dict[str, Any] = read_json(folder / "manifest.json")
    return record


def adopt_pack(config: Config) -> Config:
    """`config` with source, resolution and recipe as the pack at data.path has them."""
    record = pack_record(pack_folder(config))
    named = {key: record[key] for key in ("source", "resolution", "recipe")}
    return validate(merge(config.model_dump(), {"data": named}))


def identity(config: Config, record: dict[str, Any]) -> str:
    """12 hex digits over all that shapes the weights; the training length is not among them."""
    keys = stage_keys(config, "train")
    del keys["train"]["images"]
    return sha256_json({"keys": keys, "data": record["sha256"]})[:12]


def run(trainer: Trainer, stop: StopFlag) -> None:
    """Step until the training length is reached or a signal asks to stop."""
    job, group, runtime = trainer.job, trainer.group, trainer.config.runtime
    batch = trainer.config.train.batch
    every = max(1, runtime.log_images // batch)
    metrics = Metrics(job.scratch, trainer.step, job.steps) if group.first else None
    progress = Progress("train", job.steps * batch, runtime.progress_seconds, trainer.images)
    saved = Mark(trainer.images)
    logged = Mark(trainer.images)
    while trainer.step < job.steps:
        trainer.train_step()
        last = trainer.step == job.steps
        if trainer.step % every == 0 or last:
            row = trainer.row((trainer.images - logged.images) // batch, logged.seconds())
            logged = Mark(trainer.images)
            if metrics:
                metrics.add(row)
            if group.first and progress.due():
                progress.show(trainer.images, f"loss {row['loss']:.4f}")
        many = trainer.images - saved.images >= runtime.checkpoint_images
        late = saved.seconds() >= 60 * runtime.checkpoint_minutes
        stopping, saving = stop.agree(many or late or last)
        if saving or stopping:
            trainer.save()
            saved = Mark(trainer.images)
        if stopping and not last:
            raise Stopped(
                f"saved at step {trainer.step:,} of {job.steps:,}; the same command goes on"
            )
    if metrics:
        metrics.close()
        progress.show(trainer.images)


def finish(trainer: Trainer) -> None:
    """Write the averaged weights and the curve (rank 0)."""
    job = trainer.job
    about = {
        "config": stage_keys(job.config, "train"),
        "record": {
            k: job.pack.record[k] for k in ("source", "resolution", "recipe", "classes", "sha256")
        },
        "images": trainer.images,
        "gpu_hours": trainer.device_seconds / 3600,
        "torch": str(torch.__version__),
    }
    rows = [r for r in read_rows(job.scratch / "metrics.jsonl") if r["step"] <= job.steps]
    write_rows(job.out / "curve.jsonl", rows)
    write_config(job.out, job.config, "train")
    checkpoint.save_weights(job.out / "weights.safetensors", trainer.ema.net.state_dict(), about)
    print(f"train: {trainer.images:,} images, {job.out / 'weights.safetensors'}", flush=True)


def main(argv: list[str]) -> None:
    """Entry point of every rank."""
    job = prepare(argv, int(os.environ.get("WORLD_SIZE", 1)))
    first = os.environ.get("RANK", "0") == "0"
    lock = checkpoint.locked(job.scratch) if first else nullcontext()
    with lock, ranks(job.config.runtime.device) as group:
        stop = StopFlag(group)
        trainer = Trainer(job, group)
        trainer.resume()
        with execution.enough_memory(trainer.micro, "runtime.micro_batch", group.device):
            run(trainer, stop)
        if first:
            finish(trainer)
        group.barrier()


if __name__ == "__main__":
    run_main(main)
