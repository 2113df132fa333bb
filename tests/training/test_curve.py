"""Numbers of a row: rates, waiting, memory; what reaches the files; the driver asked rarely."""

import json
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline import train
from pipeline.compute.distributed import Ranks
from pipeline.flow.made_up import made_up
from pipeline.training import flops
from pipeline.training.meter import Meter, gpu_state, peak_memory
from pipeline.training.trainer import Trainer
from tests.conftest import resolved, write_pack

CPU = torch.device("cpu")
ALWAYS = {
    "loss", "grad_norm", "lr", "images_per_s", "images_per_s_per_gpu", "tflops", "data_wait",
    "peak_memory_gb", "seconds", "gpu_hours",
}  # fmt: skip
NULL_ON_CPU = {"mfu", "gpu_utilisation", "power_w"}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training of 3 steps, a row each."""
    pack, out = tmp_path_factory.mktemp("pack"), tmp_path_factory.mktemp("out")
    write_pack(pack, num=40, size=8, classes=10)
    words = ["experiment=tiny", "train.images=96", "runtime.log_images=32"]
    train.main([*words, f"data.path={pack}", f"out={out}"])
    return out


def test_every_row_has_every_number(out: Path) -> None:
    for line in (out / "curve.jsonl").read_text().splitlines():
        row = json.loads(line)
        assert set(row) == ALWAYS | NULL_ON_CPU | {"step", "images"}
        assert all(row[name] is None for name in NULL_ON_CPU)
        assert 0 < row["data_wait"] < 1
        work = flops.training_flops(made_up(resolved("experiment=tiny"), 10))
        assert row["images_per_s_per_gpu"] == row["images_per_s"]
        assert row["tflops"] == pytest.approx(row["images_per_s"] * work / 1e12)


def test_the_time_in_which_the_host_waits_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU computes on while steps are queued: a row and a checkpoint wait for it."""
    write_pack(tmp_path / "pack", num=40, size=8, classes=10)
    words = ["experiment=tiny", f"data.path={tmp_path / 'pack'}", f"out={tmp_path / 'out'}"]
    trainer = Trainer(train.prepare(words, 1), Ranks(0, 1, CPU))
    trainer.train_step()
    after_step = trainer.clock.seconds
    monkeypatch.setattr(trainer.watch, "check", lambda *_: time.sleep(0.2))
    assert trainer.row(1, 1.0)["seconds"] >= after_step + 0.2
    trainer.check_weights()
    assert trainer.clock.seconds >= after_step + 0.4


def test_tensorboard_has_all_numbers(out: Path) -> None:
    (folder,) = out.glob("checkpoints/*/tensorboard")
    events = EventAccumulator(str(folder))
    events.Reload()
    assert set(events.Tags()["scalars"]) == ALWAYS
    assert [event.step for event in events.Scalars("data_wait")] == [1, 2, 3]


def test_waiting_is_a_share_of_the_time_since_the_last_row() -> None:
    meter = Meter(CPU, 1e9, 10.0)
    with meter.waiting():
        time.sleep(0.05)
    assert meter.numbers(10.0, 0.5)["data_wait"] == pytest.approx(0.1, abs=0.05)
    assert meter.numbers(10.0, 0.5)["data_wait"] == 0


def test_peak_memory_is_that_of_the_process() -> None:
    block = np.ones(25_000_000)  # 200 MB
    resident = psutil.Process().memory_info().rss
    assert peak_memory(CPU) >= 0.95 * resident > block.nbytes


def test_the_driver_is_asked_at_most_every_so_many_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 5_000_000_000)
    monkeypatch.setattr(torch.cuda, "utilization", lambda _: 97)
    monkeypatch.setattr(torch.cuda, "power_draw", lambda _: 650_000)
    meter = Meter(torch.device("cuda", 0), 0.989e12, 0.1)
    first, second = meter.numbers(500.0, 1.0), meter.numbers(500.0, 1.0)
    assert (first["gpu_utilisation"], first["power_w"]) == (0.97, 650.0)
    assert first["mfu"] == pytest.approx(0.5) and first["peak_memory_gb"] == 5.0
    assert second["gpu_utilisation"] is second["power_w"] is None
    time.sleep(0.12)
    assert meter.numbers(500.0, 1.0)["power_w"] == 650.0


def test_a_silent_driver_gives_none() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    state = gpu_state(torch.device("cuda", 0))
    assert state == {"gpu_utilisation": None, "power_w": None}
