"""The plainly written EDM2 network does the same work as ours."""

from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline.bench import edm2, plain_edm2
from pipeline.bench.train import job_of
from pipeline.networks.edm2 import EDM2
from pipeline.networks.magnitude import Scaled
from pipeline.training.trainer import Trainer
from tests.bench.test_bench import CPU

WORDS = ("experiment=edm2_smoke", "data.source=shapes_tiny", "data.resolution=8")
WORDS += ("model.channels=8", "model.head_channels=8", "train.precision=fp32")


def test_the_plain_network_takes_the_same_steps(tmp_path: Path) -> None:
    jobs = [job_of(WORDS, 8, str(tmp_path)) for _ in range(2)]
    plain, ours = edm2.plain_trainer(jobs[0], CPU), Trainer(jobs[1], CPU)
    trainers = {"plain": plain, "ours": ours}
    assert edm2.losses_differ(trainers, steps=3, tolerance=edm2.TOLERANCE) < edm2.TOLERANCE
    with torch.no_grad():  # the plain one normalises at its next pass
        for layer in plain.net.modules():
            if isinstance(layer, Scaled):
                layer.scaled(1.0)
    pairs = zip(plain.net.parameters(), ours.net.parameters(), strict=True)
    for theirs, mine in pairs:
        torch.testing.assert_close(theirs, mine, atol=1e-5, rtol=1e-4)


def test_every_layer_is_written_plainly() -> None:
    job = job_of(WORDS, 8, "unused")
    net = job.workload.build()
    assert isinstance(net, EDM2)
    plain_edm2.make_plain(net)
    left: set[type[nn.Module]] = {type(module) for module in net.modules()}
    assert not left & set(plain_edm2.PLAIN)


def test_a_difference_ends_the_measurement(tmp_path: Path) -> None:
    jobs = [job_of(WORDS, 8, str(tmp_path)) for _ in range(2)]
    trainers = {"plain": edm2.plain_trainer(jobs[0], CPU), "ours": Trainer(jobs[1], CPU)}
    with torch.no_grad():
        trainers["ours"].net.get_parameter("out_gain").fill_(1.0)
    with pytest.raises(RuntimeError, match="losses of plain, ours differ"):
        edm2.losses_differ(trainers, steps=1, tolerance=edm2.TOLERANCE)
