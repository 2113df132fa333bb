"""Exports: read back by the programs they are for, whole or not there at all."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline import export
from pipeline.base.errors import UserError
from pipeline.scoring.fidelity import load_torch_fidelity
from tests.conftest import ROOT
from tests.report_inputs import noise

NUM = 23
CLASSES = ["n01, a fish", "n02", "n03"]


def write_samples(folder: Path, labels: np.ndarray) -> Path:
    folder.mkdir()
    np.save(folder / "images.npy", noise(NUM, 0))
    np.save(folder / "labels.npy", labels)
    (folder / "sample.json").write_text(json.dumps({"data": {"classes": CLASSES}}))
    return folder


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    return write_samples(tmp_path / "samples", np.arange(NUM, dtype=np.int64) % 3)


def test_pngs_are_read_back(samples: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "png"
    export.main([f"samples={samples}", f"png={out}"])
    paths = sorted(out.glob("*.png"))
    assert [p.name for p in paths] == [f"{k:06d}.png" for k in range(NUM)]
    np.testing.assert_array_equal(np.stack([Image.open(p) for p in paths]), noise(NUM, 0))
    found = load_torch_fidelity().utils.prepare_input_from_id(1, input1=str(out), verbose=False)
    assert len(found) == NUM
    for k in range(NUM):
        np.testing.assert_array_equal(found[k].permute(1, 2, 0).numpy(), noise(NUM, 0)[k])
    with (out / "labels.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert rows[3] == {"file": "000003.png", "label": "0", "class": "n01, a fish"}
    assert [int(row["label"]) for row in rows] == [k % 3 for k in range(NUM)]
    assert [p.name for p in out.parent.iterdir()] == ["png"]


def test_names_of_classes_need_not_be_utf_8(samples: Path, tmp_path: Path) -> None:
    about = samples / "sample.json"
    about.write_text(about.read_text().replace("a fish", "M\\u00fcll, M\\udcfcll"))
    export.main([f"samples={samples}", f"png={tmp_path / 'png'}"])
    with (tmp_path / "png/labels.csv").open(newline="", encoding="utf-8") as stream:
        assert next(csv.DictReader(stream))["class"] == "n01, Müll, M\\udcfcll"


def test_the_npz_is_read_back(samples: Path, tmp_path: Path) -> None:
    export.main([f"samples={samples}", f"npz={tmp_path / 'out.npz'}"])
    with np.load(tmp_path / "out.npz", allow_pickle=False) as found:
        assert found.files == ["arr_0", "arr_1"] and found["arr_1"].dtype == np.int64
        np.testing.assert_array_equal(found["arr_0"], noise(NUM, 0))
        np.testing.assert_array_equal(found["arr_1"], np.arange(NUM) % 3)


def test_without_classes_there_are_no_labels(tmp_path: Path) -> None:
    folder = write_samples(tmp_path / "samples", np.full(NUM, -1, dtype=np.int64))
    export.main([f"samples={folder}", f"npz={tmp_path / 'out.npz'}", f"png={tmp_path / 'png'}"])
    assert np.load(tmp_path / "out.npz").files == ["arr_0"]
    assert not (tmp_path / "png" / "labels.csv").exists()


def test_a_failure_leaves_nothing(
    samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(image: Image.Image, path: Path) -> None:
        if path.name == "000005.png":
            raise OSError(28, "No space left on device")
        path.write_bytes(b"x")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(UserError, match="no space left"):
        export.main([f"samples={samples}", f"png={tmp_path / 'png'}"])
    assert [p.name for p in tmp_path.iterdir()] == ["samples"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["npz={there}"], "samples=FOLDER is missing"),
        (["samples={samples}"], "give png=FOLDER or npz=FILE"),
        (["samples={samples}", "npz={there}"], "exists: give another name or remove it"),
        (["samples={samples}", "png={samples}", "npz={new}"], "exists: give another name"),
        (["samples={new}", "png={new}/png"], "images.npy is missing: run the step"),
        (["samples={samples}", "pnq={new}"], "unknown key pnq; did you mean png?"),
    ],
)
def test_refusals(samples: Path, tmp_path: Path, words: list[str], sentence: str) -> None:
    there = tmp_path / "there.npz"
    there.write_bytes(b"mine")
    names = {"samples": samples, "there": there, "new": tmp_path / "new"}
    with pytest.raises(UserError, match=sentence):
        export.main([word.format(**names) for word in words])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["samples", "there.npz"]
    assert there.read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("images.npy", np.zeros((NUM, 4, 4)), "not uint8"),
        ("labels.npy", np.full(NUM, 3), "does not hold 23 labels of 3 classes"),
        ("labels.npy", np.zeros(NUM - 1, dtype=np.int64), "does not hold 23 labels"),
    ],
)
def test_damaged_samples(
    samples: Path, tmp_path: Path, name: str, content: np.ndarray, sentence: str
) -> None:
    np.save(samples / name, content)
    with pytest.raises(UserError, match=sentence):
        export.main([f"samples={samples}", f"png={tmp_path / 'png'}"])
    assert not (tmp_path / "png").exists()


def test_samples_of_another_program_are_refused(samples: Path, tmp_path: Path) -> None:
    (samples / "sample.json").write_text("[]")
    with pytest.raises(UserError, match="does not name the classes"):
        export.main([f"samples={samples}", f"npz={tmp_path / 'out.npz'}"])


def test_the_command_line(samples: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pipeline.export", f"samples={samples}"]
    command.append(f"npz={tmp_path / 'out.npz'}")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "export: 23 images" in done.stdout
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 2 and again.stderr.startswith("error: ")
    assert "Traceback" not in again.stderr
