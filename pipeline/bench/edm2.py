"""Training steps of the EDM2 network: images/s against the same network written plainly.

Both are trained by our trainer in one process on the CPU, in float32, on the same batches; the
plain one (pipeline.bench.plain_edm2) has no normalisation after the step, since its layers do that.
Before anything is timed the losses of both are compared.
"""

import tempfile
from functools import partial
from typing import Any

import torch

from pipeline.bench import record
from pipeline.bench.plain import one_rank
from pipeline.bench.plain_edm2 import make_plain
from pipeline.bench.train import job_of, losses_differ, rate
from pipeline.compute.distributed import Ranks
from pipeline.training.job import Job
from pipeline.training.trainer import Trainer

WORDS = ("experiment=edm2_smoke", "data.source=shapes")
TOLERANCE = 1e-5  # relative difference of two losses
BAR = 1.25  # ours over plain


def plain_trainer(job: Job, group: Ranks) -> Trainer:
    """Our trainer, of the network written plainly, in torch's default memory format."""
    trainer = Trainer(job, group)
    make_plain(trainer.net)
    trainer.net.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    trainer.workload.after_step = lambda net: None  # type: ignore[method-assign]
    return trainer


def run(
    rounds: int = 7, steps: int = 2, batch: int = 64, words: tuple[str, ...] = WORDS
) -> dict[str, Any]:
    """The result (see pipeline.bench.record); always on the CPU."""
    group = Ranks(0, 1, torch.device("cpu"))
    with one_rank(group.device), tempfile.TemporaryDirectory() as folder:
        job = partial(job_of, words, batch, folder, "train.precision=fp32")
        trainers = {"plain": plain_trainer(job(), group), "ours": Trainer(job(), group)}
        # The same losses first
        differ = losses_differ(trainers, steps=4, tolerance=TOLERANCE)
        cases = {name: partial(rate, trainer, steps) for name, trainer in trainers.items()}
        values = record.interleaved(cases, rounds)
    # Against the plain one
    size = sum(parameter.numel() for parameter in trainers["ours"].net.parameters())
    title = f"training steps of {batch} images, network of edm2_smoke ({size / 1e6:.1f} M weights)"
    result = record.summary(title, "images/s", values, "plain")
    bars = [
        record.bar("ours / plain", result["ratio"]["ours"], at_least=BAR),
        record.bar("relative difference of losses", differ, at_most=TOLERANCE),
    ]
    return result | {"batch": batch, "threads": torch.get_num_threads(), "bars": bars}
