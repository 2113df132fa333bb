"""The network of edm2 against the unet under flow matching, at equal cost.

Both learn the velocity of the smoke data at 8 px at uniform times, from as many images in batches
of the same size, and a forward pass of both takes as many operations. Each has the optimiser and
schedule of its own smoke run; its learning rate is the best of three by the first seed, and of up
to FURTHER more while that lies at the edge. Averages have a half-life of a twentieth of the images
seen. Samples of all are made by the same solver with their class and no guidance. Distance:
Fréchet's from all images of the pack. Accuracy: the share of samples whose features are nearest to
the mean of their class.

Each training is kept in build/ with its scores, so a run that was stopped resumes.
"""

import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import numpy as np
import torch

from pipeline.base.files import read_json, write_json
from pipeline.bench import record
from pipeline.bench.plain import one_rank
from pipeline.bench.real_side import TOGETHER, Real
from pipeline.bench.steps import step
from pipeline.bench.train import job_of
from pipeline.compute.distributed import Ranks
from pipeline.config.load import load_step
from pipeline.config.paths import pack_folder
from pipeline.data.pack import DataAbout, Record, open_pack
from pipeline.reporting.records import read_curve
from pipeline.sampling import network
from pipeline.sampling.job import Job, Weights
from pipeline.scoring.extractors import load_extractor
from pipeline.training.flops import TRAINING, training_flops
from pipeline.training.milestones import Milestone, Run, open_run
from pipeline.training.trainer import Trainer

FOLDER = record.ROOT / "build" / "bench-quality"
SEEDS = (0, 1, 2)  # the first one also tunes
TRAINED, BATCH = 20_480, 64  # images
LENGTHS = (TRAINED // 4, TRAINED // 2, TRAINED)  # images seen
SAMPLED = 300  # images
FURTHER = 3  # rates beyond the grid
AT_ONCE = 2  # trainings of each network, one thread each
STEP_ROUNDS, TIMED = 5, 4  # rounds of the cost of a step, steps in each
BAR, SAME = 0.8, 0.05  # distance of edm2 / unet; relative difference of their operations
EXPERIMENT = (
    *("experiment=small", "data.source=shapes", "data.resolution=8", "train.lr_schedule=cosine"),
    *("model.channel_mult=[1,1]", "model.attention_at=[2]"),
    *(f"train.images={TRAINED}", f"train.batch={BATCH}", f"train.warmup_images={TRAINED // 12}"),
    *("train.label_dropout=0", "train.ema_rampup=0.05"),
    f"train.ema_halflife_images={TRAINED // 20}",
    *(f"runtime.milestone_images={LENGTHS[0]}", "runtime.device=cpu", "launch.launcher=none"),
    *("sample.guidance=1", "sample.solver=euler", "sample.steps=8", f"sample.num={SAMPLED}"),
)  # fmt: skip
PACK_WORDS = ("experiment=small", "data.source=shapes", "data.resolution=8", "runtime.workers=2")


class Network(NamedTuple):
    """One side of the comparison: its keys, and learning rates in ascending order."""

    words: tuple[str, ...]
    rates: tuple[float, ...]


NETWORKS = {
    "unet": Network((), (2e-3, 4e-3, 8e-3)),
    "edm2": Network(
        (
            *("model.kind=edm2", "train.lr_schedule=inverse_sqrt", "train.betas=[0.9,0.99]"),
            f"train.lr_decay_images={TRAINED // 8}",
        ),
        (0.01, 0.02, 0.04),
    ),
}

Row = dict[str, Any]  # network, rate, seed, loss, and points: images, distance, accuracy
Rows = list[Row]


# --- tuning --------------------------------------------------------------------------------------


def final(row: Row) -> float:
    """The distance at the end of a training."""
    return float(row["points"][-1]["distance"])


def further_rate(rates: list[float], best: float) -> float | None:
    """A rate beyond all others on the side of `best`; None if that is not at their edge."""
    if best == min(rates):
        return best / 2
    return 2 * best if best == max(rates) else None


def rows_of(name: str, train: "Training") -> Rows:
    """The trainings of a network: those that tune its rate, then all seeds of the best."""
    rates, first = NETWORKS[name].rates, SEEDS[0]
    rows = together(train, [(name, rate, first) for rate in rates])
    for _ in range(FURTHER):
        further = further_rate([row["rate"] for row in rows], min(rows, key=final)["rate"])
        if further is not None:
            rows.append(train(name, further, first))
    best = min(rows, key=final)["rate"]
    return rows + together(train, [(name, best, seed) for seed in SEEDS[1:]])


def together(train: "Training", which: list[tuple[str, float, int]]) -> Rows:
    """The rows of some trainings, of which AT_ONCE run at a time."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(lambda one: train(*one), which))


def best_rows(rows: Rows, name: str) -> Rows:
    """All seeds of a network at its best rate."""
    own = [row for row in rows if row["network"] == name]
    first = [row for row in own if row["seed"] == SEEDS[0]]
    best = min(first, key=final)["rate"]
    return [row for row in own if row["rate"] == best]


# --- scores --------------------------------------------------------------------------------------


def samples_of(run: Run, milestone: Milestone, record_: Record) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (SAMPLED,H,W,3) by the average of a milestone, and their labels."""
    group = Ranks(0, 1, torch.device("cpu"))
    weights = Weights(milestone.path, run.about(milestone), DataAbout.of(record_))
    job = Job(run.config, weights, None, SEEDS[0], run.folder)
    networks = network.build(job, group, run.tensors(milestone))
    index = np.arange(SAMPLED, dtype=np.int64)
    parts = [index[start : start + TOGETHER] for start in range(0, SAMPLED, TOGETHER)]
    images = [network.sample_images(job, networks, part, group.device)[0] for part in parts]
    return np.concatenate(images), network.class_labels(job, index)


# --- trainings -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Training:
    """Trains, samples and scores; `folder` keeps the row of each training that is done."""

    folder: Path
    record: Record
    real: Real

    def __call__(self, name: str, rate: float, seed: int) -> Row:
        """The row of a training: the kept one, or that of a new one or one that resumes."""
        place = self.folder / f"{name}-{rate:g}-{seed}"
        kept = self.folder / f"{place.name}.json"
        if kept.exists():
            row: Row = read_json(kept)
            return row
        words = [*EXPERIMENT, *NETWORKS[name].words, f"data.pack_dir={self.folder}"]
        words += [f"train.lr={rate}", f"train.seed={seed}"]
        step("train", *words, f"record={self.folder}/record.json", f"out={place}")
        points = self.points(place, words)
        loss = read_curve(place / "curve.jsonl")[-1].loss
        row = {"network": name, "rate": rate, "seed": seed, "loss": loss, "points": points}
        write_json(kept, row)
        shutil.rmtree(place)
        print(json.dumps(row), flush=True)
        return row

    def points(self, place: Path, words: list[str]) -> list[dict[str, float]]:
        """The scores of a training at each of LENGTHS."""
        config, data = load_step(words, ())[0], DataAbout.of(self.record).to_json()
        run = open_run(config, place, None, data)
        reached = {milestone.images: milestone for milestone in run.reached()}
        return [
            {"images": images} | self.real.score(*samples_of(run, reached[images], self.record))
            for images in LENGTHS
        ]


def prepared(folder: Path) -> Training:
    """The pack in `folder`, made unless it is there, and what scores against it."""
    words = [*PACK_WORDS, f"data.pack_dir={folder}"]
    if not (folder / "record.json").exists():
        step("downsample", *words, f"out={folder}/record.json")
    about = Record.read(folder / "record.json")
    pack = open_pack(pack_folder(load_step(words, ())[0]), about)
    extractor = load_extractor("efficientnet-lite0", None, torch.device("cpu"))
    return Training(folder, about, Real(extractor, pack, len(about.classes)))


# --- cost ----------------------------------------------------------------------------------------


def cpu_seconds(trainer: Trainer) -> float:
    """CPU seconds of a step, after one that is not timed."""
    trainer.train_step()
    began = time.process_time()
    for _ in range(TIMED):
        trainer.train_step()
    return (time.process_time() - began) / TIMED


def cost(folder: Path) -> dict[str, Any]:
    """Operations of a forward pass on one image, and CPU seconds of a step, of each network."""
    group = Ranks(0, 1, torch.device("cpu"))
    with one_rank(group.device):
        jobs = {
            name: job_of((*EXPERIMENT, *side.words), BATCH, str(folder))
            for name, side in NETWORKS.items()
        }
        flops = {name: training_flops(job.workload) // TRAINING for name, job in jobs.items()}
        trainers = {name: Trainer(job, group) for name, job in jobs.items()}
        cases = {name: partial(cpu_seconds, trainer) for name, trainer in trainers.items()}
        seconds = record.medians(record.interleaved(cases, STEP_ROUNDS))
    return {"forward_flops": flops, "cpu_s_per_step": seconds}


# --- result --------------------------------------------------------------------------------------


def curves(rows: Rows) -> dict[str, list[dict[str, float]]]:
    """Means over the seeds of each network at its best rate: images, distance, accuracy."""
    result = {}
    for name in NETWORKS:
        columns = zip(*(row["points"] for row in best_rows(rows, name)), strict=True)
        result[name] = [
            {key: mean(p[key] for p in points) for key in points[0]} for points in columns
        ]
    return result


def result_of(rows: Rows, costs: dict[str, Any]) -> dict[str, Any]:
    """The result (see pipeline.bench.record) of all trainings."""
    title = (
        f"distance of {SAMPLED} samples after {TRAINED:,} images, smoke data at 8 px, "
        f"{len(SEEDS)} seeds"
    )
    values = {name: [final(row) for row in best_rows(rows, name)] for name in NETWORKS}
    flops, lines = costs["forward_flops"], curves(rows)
    differ = abs(flops["edm2"] / flops["unet"] - 1)
    bars = [
        record.bar(f"distance, edm2 / unet, at {of['images']:,.0f} images",
                   of["distance"] / unet["distance"], at_most=BAR)
        for of, unet in zip(lines["edm2"], lines["unet"], strict=True)
    ][::-1]  # fmt: skip
    bars.append(record.bar("relative difference of forward operations", differ, at_most=SAME))
    result = record.summary(title, "distance", values, baseline="unet")
    return result | costs | {"bars": bars, "curves": lines, "trainings": rows, "notes": notes(rows)}


def notes(rows: Rows) -> list[str]:
    """A line for each network: its best rate, and its accuracies by images seen."""
    lines = []
    for name, points in curves(rows).items():
        rate = best_rows(rows, name)[0]["rate"]
        shares = ", ".join(f"{p['accuracy']:.0%} at {p['images']:,.0f} images" for p in points)
        lines.append(f"{name} at its best rate {rate:g}: class accuracy {shares}")
    return lines


def run(folder: Path | None = None) -> dict[str, Any]:
    """The result; trainings are kept in `folder`, by default one for this code."""
    place = folder or FOLDER / record.code()
    place.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # several trainings run at a time
    train, costs = prepared(place), cost(place)
    with ThreadPoolExecutor(len(NETWORKS)) as pool:
        of_networks = list(pool.map(partial(rows_of, train=train), NETWORKS))
    return result_of([row for rows in of_networks for row in rows], costs)
