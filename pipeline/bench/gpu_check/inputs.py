"""Small jobs and networks that the checks compute."""

from collections.abc import Sequence
from pathlib import Path

from pipeline.config.load import load_step
from pipeline.config.schema import Config
from pipeline.flow.made_up import made_up
from pipeline.images.sources.find import resolve_image_set
from pipeline.training.job import Job

CLASSES = 10
BATCH = 48
# The tiny experiment with all that a batch may draw, in float32 and as large steps as it bears.
TINY = (
    "experiment=tiny", f"train.batch={BATCH}", "train.images=100000", "train.warmup_images=0",
    "train.lr=3e-4", "train.weight_decay=0.1", "train.flip=true", "train.label_dropout=0.3",
    "train.ema_halflife_images=[0,500]", "train.precision=fp32", f"runtime.micro_batch={BATCH}",
    "runtime.compile=false",
)  # fmt: skip


def configuration(words: Sequence[str]) -> Config:
    """The configuration that words describe, whatever the environment says."""
    return resolve_image_set(load_step(list(words), (), environment={})[0], {})


def made_up_job(folder: str, *more: str) -> Job:
    """A training of the tiny network on made-up images, with its files in `folder`."""
    config = configuration([*TINY, *more])
    return Job(config, made_up(config, CLASSES), Path(folder), Path(folder) / "checkpoints")


def imagenet_job(folder: str, *more: str) -> Job:
    """A training of the `imagenet` network at 64 px on made-up images, not compiled."""
    words = (
        "experiment=imagenet",
        "data.source=train",
        "data.resolution=64",
        "runtime.compile=false",
    )
    config = configuration([*words, *more])
    return Job(config, made_up(config, 1000), Path(folder), Path(folder) / "checkpoints")
