"""What commit 99c37be wrote goes on: pack, checkpoint, weights and samples of tests/fixtures."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from pipeline import downsample, sample, train
from tests.conftest import ROOT

WRITTEN = ROOT / "tests" / "fixtures" / "run_99c37be"
WORDS = [
    "experiment=tiny",
    "model.channel_mult=[1]",
    "model.attention_at=[]",
    "model.blocks=1",
    "train.batch=12",
    "train.lr=1e-4",
    "train.ema_halflife_images=50",
    "runtime.log_images=12",
    "runtime.checkpoint_images=24",
    "runtime.keep_checkpoints=1",
    "runtime.device=cpu",
    "data.path=pack",
]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the run, as the current folder."""
    shutil.copytree(WRITTEN, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def losses(curve: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in curve.read_text().splitlines()]


def test_the_pack_is_still_the_pack(run: Path, capsys: pytest.CaptureFixture) -> None:
    before = {path: path.read_bytes() for path in [*(run / "pack").iterdir(), run / "record.json"]}
    downsample.main(["experiment=tiny", "data.path=pack", "out=record.json"])
    assert "there and whole" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in before} == before


def test_the_training_goes_on(run: Path, capsys: pytest.CaptureFixture) -> None:
    train.main([*WORDS, "train.images=96", "record=record.json", "out=train"])
    assert "resuming from step 4 of 8" in capsys.readouterr().out
    (folder,) = (run / "train" / "checkpoints").iterdir()  # the name is the run's identity
    assert folder.name == "4aadd61fea23"
    expected = losses(run / "curve_of_96_images.jsonl")
    np.testing.assert_allclose(losses(run / "train" / "curve.jsonl"), expected, rtol=1e-5)


def test_a_finished_training_is_finished(run: Path, capsys: pytest.CaptureFixture) -> None:
    before = json.loads((run / "train" / "config.json").read_text())
    curve = (run / "train" / "curve.jsonl").read_bytes()
    train.main([*WORDS, "train.images=48", "record=record.json", "out=train"])
    assert "resuming from step 4 of 4" in capsys.readouterr().out
    assert (run / "train" / "curve.jsonl").read_bytes() == curve
    assert json.loads((run / "train" / "config.json").read_text()) == before


def test_its_checkpoint_and_its_weights_start_another_training(
    run: Path, capsys: pytest.CaptureFixture
) -> None:
    (saved,) = run.glob("train/checkpoints/*/step-*.pt")
    for file, said in ((saved, "current weights"), ("train/weights.safetensors", "averaged with")):
        more = [f"train.start={file}", "train.images=12", "record=record.json", "out=new"]
        train.main([*WORDS, *more])
        assert said in capsys.readouterr().out


def test_the_weights_give_the_same_samples(run: Path) -> None:
    words = ["weights=train/weights.safetensors", "seed=0", "out=again", "sample.num=4"]
    words += ["sample.solver=euler", "sample.steps=2", "sample.precision=fp32"]
    sample.main([*WORDS, *words])
    images, written = (np.load(run / f / "images.npy").astype(int) for f in ("again", "samples"))
    assert np.abs(images - written).max() <= 1
    about, before = (
        json.loads((run / f / "sample.json").read_text()) for f in ("again", "samples")
    )
    differ = {key for key in before if about[key] != before[key]}
    assert about.keys() == before.keys() | {"rounding"}
    assert differ <= {"images_per_s", "seconds"}


def test_its_config_json_repeats_the_training(run: Path, capsys: pytest.CaptureFixture) -> None:
    settings = [word for word in WORDS if word.startswith(("runtime", "data.path"))]
    train.main(["config=train/config.json", *settings, "record=record.json", "out=again"])
    (folder,) = (run / "again" / "checkpoints").iterdir()
    assert folder.name == "4aadd61fea23"
    assert (run / "again" / "config.json").read_bytes() == (
        run / "train" / "config.json"
    ).read_bytes()
    np.testing.assert_allclose(
        losses(run / "again" / "curve.jsonl"), losses(run / "train" / "curve.jsonl"), rtol=1e-5
    )
