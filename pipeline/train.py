"""Train the velocity network: pack -> weights.safetensors (averaged) and curve.jsonl.

Each further half-life of the average gives a weights-ema<images>.safetensors.

    torchrun --standalone --nproc-per-node=4 -m pipeline.train data.path=PACK train.lr=2e-4

Everything needed to go on lies in `checkpoints/<hash of the experiment keys>/`, which the workflow
does not declare and so never deletes; checkpoints=FOLDER names another folder.
"""

import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from pipeline.base import locks
from pipeline.base.errors import Stopped, UserError, run_main
from pipeline.base.files import read_json, sha256_json
from pipeline.base.progress import Progress, read_rows, write_rows
from pipeline.compute import execution
from pipeline.compute.distributed import StopFlag, ranks
from pipeline.config.load import load_step, validate
from pipeline.config.paths import pack_folder, run_folder, weights_files
from pipeline.config.schema import Config
from pipeline.config.stages import stage_keys, write_config
from pipeline.config.words import merge
from pipeline.data.pack import open_pack
from pipeline.launching.handover import hand_over
from pipeline.networks import weights_file
from pipeline.training.batch_size import micro_batch
from pipeline.training.curve import Mark, Metrics
from pipeline.training.preflight import check, identity_keys
from pipeline.training.trainer import Job, Trainer

WORDS = ("record", "out", "checkpoints")  # paths on the command line
# What the weights' file says of the pack.
RECORD_KEYS = ("source", "resolution", "recipe", "classes", "per_class", "sha256")


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
    scratch = Path(own.get("checkpoints", out / "checkpoints" / identity(config, record)))
    return Job(config, pack, out, scratch, steps)


def preflight(argv: list[str], world: int) -> None:
    """What the launcher runs before any rank: checks, and waits for another trainer to end."""
    job = prepare(argv, world)
    locks.wait_until_free(job.scratch)
    check(job)


def pack_record(folder: Path) -> dict[str, Any]:
    """The record that a pack carries in its own manifest."""
    if not (folder / "manifest.json").exists():
        raise UserError(f"pack {folder} is missing: run `make data` or give data.path=PACK")
    record: dict[str, Any] = read_json(folder / "manifest.json")
    return record


def adopt_pack(config: Config) -> Config:
    """`config` with source, resolution and recipe as the pack at data.path has them."""
    record = pack_record(pack_folder(config))
    recipe, _, fast = str(record["recipe"]).partition("-")
    data = {"source": record["source"], "resolution": record["resolution"], "recipe": recipe}
    named = {"data": data, "downsample": {"fast": bool(fast)}}
    return validate(merge(config.model_dump(), named))


def identity(config: Config, record: dict[str, Any]) -> str:
    """12 hex digits over all that shapes the weights."""
    return sha256_json({"keys": identity_keys(config), "data": record["sha256"]})[:12]


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
        stopping, saving = stop.agree(many or late or last or trainer.at_milestone())
        if saving or stopping:
            trainer.save()
            saved = Mark(trainer.images)
        if stopping and not last:
            trainer.writer.wait()
            trainer.group.barrier()  # nobody leaves before the checkpoint of rank 0 is whole
            raise Stopped(
                f"saved at step {trainer.step:,} of {job.steps:,}; the same command goes on"
            )
    trainer.writer.wait()
    if metrics:
        metrics.close()
        progress.show(trainer.images)


def finish(trainer: Trainer, averages: list[dict[str, torch.Tensor]]) -> None:
    """Write the averaged weights, one file a half-life, and the curve (rank 0)."""
    job = trainer.job
    about = {
        "config": stage_keys(job.config, "train"),
        "record": {k: job.pack.record[k] for k in RECORD_KEYS if k in job.pack.record},
        "images": trainer.images,
        "gpu_hours": trainer.device_seconds / 3600,
        "torch": str(torch.__version__),
    }
    rows = [r for r in read_rows(job.scratch / "metrics.jsonl") if r["step"] <= job.steps]
    write_rows(job.out / "curve.jsonl", rows)
    write_config(job.out, job.config, "train")
    files = weights_files(job.config.train)
    for weights, (halflife, name) in zip(averages, files.items(), strict=True):
        own = about | {"ema_halflife_images": halflife}
        weights_file.save_weights(job.out / name, weights, own)
    names = ", ".join(files.values())
    print(f"train: {trainer.images:,} images, {job.out}: {names}", flush=True)


def main(argv: list[str]) -> None:
    """Entry point of every rank."""
    hand_over("pipeline.train", argv, WORDS)
    job = prepare(argv, int(os.environ.get("WORLD_SIZE", 1)))
    first = os.environ.get("RANK", "0") == "0"
    if first:
        check(job)
    lock = locks.locked(job.scratch) if first else nullcontext()
    with lock, ranks(job.config.runtime.device) as group:
        stop = StopFlag(group)
        trainer = Trainer(job, group)
        trainer.resume()
        memory = execution.enough_memory(trainer.micro, "runtime.micro_batch", group.device)
        with trainer.writer, memory:
            run(trainer, stop)
        averages = trainer.averaged_weights()
        if first:
            finish(trainer, averages)
        group.barrier()


if __name__ == "__main__":
    run_main(main)
