"""A workload on made-up images, to measure how fast a machine trains."""

import numpy as np

from pipeline.config.schema import Config
from pipeline.config.workloads import TOKENS
from pipeline.data.pack import Hashes, Pack, Record
from pipeline.flow.discrete_workload import DiscreteFlow
from pipeline.flow.workload import FlowMatching

IMAGES = 2048  # of 64 px they take 25 MB


def made_up_pack(resolution: int, num_classes: int, num: int = IMAGES) -> Pack:
    """`num` images of noise in host memory, their labels in turn."""
    images = np.random.default_rng(0).integers(0, 256, (num, resolution, resolution, 3), np.uint8)
    classes = [f"class {k}" for k in range(num_classes)]
    record = Record(
        source="noise", resolution=resolution, recipe="none", classes=classes, num_images=num,
        sha256=Hashes(images="made up", labels="made up"),
    )  # fmt: skip
    return Pack(images, np.arange(num, dtype=np.int64) % num_classes, record)


def made_up(config: Config, num_classes: int) -> FlowMatching | DiscreteFlow:
    """The workload of `config` on made-up images."""
    pack = made_up_pack(config.data.resolution, num_classes)
    return DiscreteFlow(config, pack) if config.workload == TOKENS else FlowMatching(config, pack)
