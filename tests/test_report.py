"""The report: right pictures, all files or none, and one sentence about bad input."""

import base64
import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline import report
from pipeline.base.errors import UserError
from pipeline.data.duals import Duals, save_duals
from pipeline.drawing import tiles
from pipeline.reporting import tables
from pipeline.reporting.learned import LearnedSolver
from pipeline.reporting.milestones import MilestoneRow, write_milestones
from tests.conftest import ROOT
from tests.report_inputs import SIZE, build, curve_row, evaluation, noise, write_images

OUTPUTS = {
    "index.html",
    "curve.png",
    "samples_vs_real.png",
    "table.html",
    "summary.txt",
    "lead.txt",
    "distance.png",
    "nfe.png",
    "config.json",
}


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """The command line of a complete report in `tmp_path`."""
    return build(tmp_path)


def test_report_writes_and_prints_everything(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report.main(words)
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == OUTPUTS
    for path in out.glob("*.png"):
        with Image.open(path) as picture:
            picture.load()
            assert np.asarray(picture.convert("L")).std() > 5  # something is drawn
    text = (out / "summary.txt").read_text()
    assert capsys.readouterr().out == text
    assert max(map(len, text.splitlines())) <= tables.WIDTH


def test_picture_has_real_images_left_and_samples_right(tmp_path: Path) -> None:
    report.main(build(tmp_path, seeds=(0,)))
    pixels = np.asarray(Image.open(tmp_path / "out" / "samples_vs_real.png"))
    size, top = 4 * SIZE, tiles.MARGIN + tiles.TITLE_HEIGHT
    right = pixels.shape[1] - tiles.MARGIN - 2 * size - tiles.GAP
    left = right - 2 * tiles.MARGIN - 2 * size - tiles.GAP
    for row in range(3):
        for column in range(2):
            y, x = top + row * (size + tiles.GAP), column * (size + tiles.GAP)
            real = pixels[y : y + size : 4, left + x : left + x + size : 4]
            made = pixels[y : y + size : 4, right + x : right + x + size : 4]
            np.testing.assert_array_equal(real, noise(12, 99)[4 * row + column])
            np.testing.assert_array_equal(made, noise(12, 0)[row + 3 * column])


def test_duals_and_fitted_solvers_are_told(words: list[str], tmp_path: Path) -> None:
    """How far the coupling's shares are from uniform, and how near each solver comes to dopri5."""
    duals = Duals(
        values=np.zeros(3),
        images_sha256="a",
        labels_sha256="b",
        within_classes=True,
        flip=False,
        tolerance=0.1,
        deviation=0.0543,
        worst_deviation=0.0892,
        draws=300.0,
        reached=True,
    )
    save_duals(tmp_path / "duals.npz", duals)
    solver = LearnedSolver(
        times=[0, 1],
        coefficients=[[1, 1]],
        sampler="learned-1",
        weights="c",
        guide=None,
        num=256,
        seed=7,
        error=0.0123,
        evaluations=9,
        tries=[],
    )
    solver.write(tmp_path / "learned-1.json")
    report.main(
        [
            *words,
            f"duals={tmp_path}/duals.npz",
            f"solvers={json.dumps([f'{tmp_path}/learned-1.json'])}",
        ]
    )
    told = (
        "semidiscrete transport: each image gets the same share of the noise up to 0.054 of it "
        "(RMS, at most 0.089 in a class).",
        "learned-1 takes 1 step that was fitted to 256 images of dopri5 with seed 7: pixel values, "
        "from -1 to 1, differ from its by 0.0123 (RMS).",
    )
    for name in ("summary.txt", "index.html"):
        text = " ".join((tmp_path / "out" / name).read_text().split())
        assert all(sentence in text for sentence in told)
    assert 'href="../learned-1.json"' in (tmp_path / "out" / "index.html").read_text()


def test_the_picture_shows_four_samplers_and_names_the_others(tmp_path: Path) -> None:
    words = build(tmp_path, seeds=tuple(range(6)))
    for seed in range(6):  # two seeds of the first sampler, then four more samplers
        path = tmp_path / "sample" / f"seed{seed}" / "sample.json"
        about = json.loads(path.read_text()) | {"sampler": f"heun-{max(seed, 1)}"}
        path.write_text(json.dumps(about))
    report.main(words)
    text = " ".join((tmp_path / "out" / "summary.txt").read_text().split())
    assert "samples_vs_real.png shows the first 4 samplers, not heun-5" in text
    height = Image.open(tmp_path / "out" / "samples_vs_real.png").height
    line = 3 * (4 * SIZE + tiles.GAP) - tiles.GAP + tiles.TITLE_HEIGHT + tiles.MARGIN
    assert height == 3 * line + tiles.MARGIN  # five panels, two abreast


def test_the_page_counts_the_images_of_each_class(words: list[str], tmp_path: Path) -> None:
    np.save(tmp_path / "sample" / "seed1" / "labels.npy", np.repeat([0, 0, 1], 4))
    report.main(words)
    text = (tmp_path / "out" / "table.html").read_text()
    last = text[text.index("Images of each class") :]
    cells = [re.findall(r"<td[^>]*>([^<]*)</td>", row) for row in last.split("<tr>")]
    assert ["n00000001_circle", "4", "4", "8"] in cells
    assert ["n00000003_ring", "4", "4", "0"] in cells


def test_samples_without_classes(tmp_path: Path) -> None:
    arguments = build(tmp_path, seeds=(0,))
    np.save(tmp_path / "sample" / "seed0" / "labels.npy", np.full(12, -1))
    report.main(arguments)
    pixels = np.asarray(Image.open(tmp_path / "out" / "samples_vs_real.png"))
    size, bottom = 4 * SIZE, pixels.shape[0] - tiles.MARGIN
    right = pixels.shape[1] - tiles.MARGIN
    left = right - 2 * size - tiles.GAP - 2 * tiles.MARGIN
    for edge, expected in ((right, noise(12, 0)[5]), (left, noise(12, 99)[11])):
        last = pixels[bottom - size : bottom : 4, edge - size : edge : 4]
        np.testing.assert_array_equal(last, expected)


def test_no_metric_and_no_accuracy(tmp_path: Path) -> None:
    arguments = build(tmp_path, seeds=(0,))
    path = tmp_path / "heun-18-seed0.json"
    result = evaluation(0) | {"metrics": [], "class_accuracy": None}
    result["sample"]["images_per_s"] = None  # all batches were there already
    path.write_text(json.dumps(result))
    report.main(arguments)
    assert {path.name for path in (tmp_path / "out").iterdir()} == OUTPUTS


@pytest.mark.slow
def test_scores_over_the_training_are_shown(words: list[str], tmp_path: Path) -> None:
    label, sampler = "Fréchet distance, <of all>", "heun-18"
    rows = [
        MilestoneRow(images=n, distance=d, label=label, num=20, seed=0, sampler=sampler)
        for n, d in ((640, 12.5), (128, 90.25), (256, 9.75))
    ]
    curve = tmp_path / "curve-over-training.jsonl"
    write_milestones(curve, rows)
    with pytest.raises(UserError, match="curve.png is missing: run `python -m pipeline.milestones"):
        report.main([*words, f"milestones={curve}"])
    (tmp_path / "curve.png").write_bytes(b"picture")
    report.main([*words, f"milestones={curve}"])
    page = (tmp_path / "out" / "index.html").read_text()
    assert base64.b64encode(b"picture").decode() in page and "&lt;of all&gt;" in page
    text = " ".join((tmp_path / "out" / "summary.txt").read_text().split())
    scores = "first 90.25 at 128 images, best 9.75 at 256 images, last 12.5 at 640 images"
    assert scores in text and "20 samples with seed 0 each" in text
    assert "not with scores of another number" in text
    curve.write_text('{"images": 1}')
    with pytest.raises(UserError, match="is not the score of a milestone"):
        report.main([*words, f"milestones={curve}"])


# --- bad input ---------------------------------------------------------------------------------


def damage(root: Path, name: str) -> None:
    """Break one input below `root`."""
    if name == "no curve":
        (root / "curve.jsonl").unlink()
    bad_accuracy = evaluation(1) | {
        "class_accuracy": {"overall": 1, "per_class": [], "num_images": 12, "floor": {}}
    }
    changes = {
        "empty curve": ("curve.jsonl", ""),
        "cut curve": ("curve.jsonl", json.dumps(curve_row(1)) + '\n{"step": 2, "ima'),
        "bad curve": ("curve.jsonl", '{"step": 2}\n'),
        "no metrics": ("heun-18-seed1.json", "{}"),
        "bad accuracy": ("heun-18-seed1.json", json.dumps(bad_accuracy)),
        "bad sample": ("sample/seed1/sample.json", "[]"),
        "bad record": ("record.json", "{"),
    }
    if name in changes:
        (root / changes[name][0]).write_text(changes[name][1])
    if name == "other size":
        np.save(root / "sample" / "seed1" / "images.npy", noise(12, 1, 8))
    if name == "other labels":
        np.save(root / "sample" / "seed1" / "labels.npy", np.full(12, 3))
    if name == "other pack":
        write_images(root / "packs" / f"shapes_{SIZE}" / "box", noise(6, 9), np.arange(6) % 3)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("no curve", "curve.jsonl is missing: run the training"),
        ("empty curve", "curve.jsonl holds no rows: run the training"),
        ("cut curve", "line 2 of .*curve.jsonl is not JSON"),
        (
            "bad curve",
            r"line 1 of .*curve.jsonl is not a row of a .*curve \(images: field required\)",
        ),
        ("no metrics", r"seed1.json is not a metrics file of samples \(metrics: field required\)"),
        (
            "bad accuracy",
            r"seed1.json is not .* \(class_accuracy.floor.overall: field required",
        ),
        ("bad sample", "sample.json is not a description of samples"),
        ("bad record", "record.json is damaged"),
        ("other size", r"seed1 has uint8 images \(12, 8, 8, 3\)"),
        ("other labels", "goes to 3, but the record has 3 classes"),
        ("other pack", "run downsample again"),
    ],
)
def test_bad_input_is_one_sentence_and_touches_nothing(
    words: list[str], tmp_path: Path, name: str, sentence: str
) -> None:
    (tmp_path / "out").mkdir()
    for output in OUTPUTS:
        (tmp_path / "out" / output).write_text("old")
    damage(tmp_path, name)
    with pytest.raises(UserError, match=sentence) as caught:
        report.main(words)
    assert "\n" not in str(caught.value)
    assert {p.name: p.read_text() for p in (tmp_path / "out").iterdir()} == dict.fromkeys(
        OUTPUTS, "old"
    )


def test_missing_words_are_named(words: list[str]) -> None:
    with pytest.raises(UserError, match=r"needs curve=\.\.\. out=\.\.\. on"):
        report.main([word for word in words if not word.startswith(("curve=", "out="))])
    with pytest.raises(UserError, match=r"out=.*record.json is a file"):
        report.main([*words[:-1], words[3].replace("record=", "out=")])


@pytest.mark.slow
def test_command_line_needs_no_torch_and_gives_equal_bytes(
    words: list[str], tmp_path: Path
) -> None:
    hashes = []
    for folder in ("one", "two"):
        arguments = [*words[:-1], f"out={tmp_path / folder}"]
        code = f"import sys; sys.modules['torch'] = None; sys.argv[1:] = {arguments!r}; " + (
            "import runpy; runpy.run_module('pipeline.report', run_name='__main__')"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        files = sorted((tmp_path / folder).iterdir())
        hashes.append([hashlib.sha256(path.read_bytes()).hexdigest() for path in files])
    assert hashes[0] == hashes[1]


def test_captions_hold_a_few_lines() -> None:
    captions = sorted((Path(report.__file__).parent / "captions").glob("*.rst"))
    rules = [ROOT / "Snakefile", *(ROOT / "pipeline/workflow").glob("*.smk")]
    text = "".join(path.read_text() for path in rules)
    assert {path.stem for path in captions} == set(re.findall(r"captions/(\w+)\.rst", text))
    assert all(2 <= len(path.read_text().splitlines()) <= 4 for path in captions)
