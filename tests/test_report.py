"""The report: right images in the cells, right numbers in the tables, nothing half-written."""

import hashlib
import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline import grid, report
from pipeline.errors import UserError

CLASSES = ["n00000001_circle", "n00000002_square", "n00000003_ring"]
OUTPUTS = {"curve.png", "samples_vs_real.png", "table.html", "summary.txt", "distance.png"}
SIZE = 16  # px


def noise(num: int, seed: int, size: int = SIZE) -> np.ndarray:
    """Random images uint8 (num,size,size,3)."""
    return np.random.default_rng(seed).integers(0, 256, (num, size, size, 3), np.uint8)


def write_images(folder: Path, images: np.ndarray, labels: np.ndarray) -> None:
    """A folder of images and labels, as a pack or samples."""
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "images.npy", images)
    np.save(folder / "labels.npy", labels)


def curve_row(step: int) -> dict[str, Any]:
    """One row of the training curve."""
    speed = {"lr": 1e-3, "images_per_s": 300.0, "seconds": step / 10}
    return {"step": step, "images": 32 * step, "loss": 2 / step, "grad_norm": 1.0 / step, **speed}


def metrics(sample: dict[str, Any], value: float) -> dict[str, Any]:
    """A metrics file with a bracketed distance, an unbracketed score and class accuracy."""
    bracket = {"num_images": 9, "floor": 12.25, "value": value + 20, "ceiling": 4321.0}
    about = {"value": value, "num_images": sample["num"], "better": "lower", "bracket": bracket}
    other = {"value": 0.625, "std": 0.0125, "num_images": 9, "better": "higher"}
    return {
        "metrics": [
            {"name": "fid", "label": "FID <of all>", **about},
            {"name": "recall", "label": "Recall", **other},
        ],
        "class_accuracy": {
            "overall": 0.875, "num_images": 12, "per_class": [1.0, 0.5, None],
            "floor": {"overall": 0.9375, "per_class": [1.0, 1.0, 0.8125]},
        },
        "notes": ["few images"],
        "protocol": {"extractor": "inception-v3-compat", "reference": {"recipe": "box"}},
        "sample": sample,
        "seconds": 1.0,
    }  # fmt: skip


def build(root: Path, seeds: tuple[int, ...] = (0, 1)) -> list[str]:
    """All inputs of a report below `root`; returns the command line."""
    labels = np.repeat(np.arange(3), 4)
    write_images(root / "packs" / f"shapes_{SIZE}" / "box", noise(12, 99), labels)
    record = {"source": "shapes", "resolution": SIZE, "recipe": "box", "num_images": 12}
    (root / "record.json").write_text(json.dumps(record | {"classes": CLASSES, "sha256": {}}))
    rows = [json.dumps(curve_row(step)) + "\n" for step in range(1, 31)]
    (root / "curve.jsonl").write_text("".join(rows))
    folders = [root / "sample" / f"seed{seed}" for seed in seeds]
    scores = [root / f"heun-18-seed{seed}.json" for seed in seeds]
    for seed, folder, path in zip(seeds, folders, scores, strict=True):
        how = {"sampler": "heun-18", "seed": seed, "num": 12, "nfe_mean": 36.0, "nfe_max": 36}
        how |= {"images_per_s": 77.5, "seconds": 1.5, "world_size": 2, "device": "CPU"}
        how |= {"precision": "fp32", "guidance": 1.0}
        write_images(folder, noise(12, seed), np.arange(12) % 3)
        (folder / "sample.json").write_text(json.dumps(how))
        path.write_text(json.dumps(metrics(how, 34.5 + seed)))
    keys = json.dumps({"report": {"grid_classes": 3, "grid_columns": 2}})
    return [
        f"config={keys}", f"data.pack_dir={root / 'packs'}", f"curve={root / 'curve.jsonl'}",
        f"record={root / 'record.json'}", f"samples={','.join(map(str, folders))}",
        f"metrics={','.join(map(str, scores))}", f"out={root / 'out'}",
    ]  # fmt: skip


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """The command line of a complete report in `tmp_path`."""
    return build(tmp_path)


# --- grids -------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 4), st.integers(0, 2**16))
def test_grid_shows_each_image_in_its_cell(rows: int, columns: int, scale: int, seed: int) -> None:
    images, labels = noise(24, seed, 9) // 2, np.random.default_rng(seed).permutation(24) % 4
    classes = ["", "", "", ""]  # no names: the first cell follows the margins
    picture = np.asarray(grid.image_grid(images, labels, classes, rows + 1, columns, scale))
    pitch, size = 9 * scale + grid.GAP, 9 * scale
    shown = np.linspace(0, 3, rows + 1).round().astype(int)
    for row, label in enumerate(shown):
        for column, index in enumerate(np.flatnonzero(labels == label)[:columns]):
            top, left = grid.MARGIN + row * pitch, 2 * grid.MARGIN + column * pitch
            found = picture[top : top + size, left : left + size]
            expected = images[index].repeat(scale, 0).repeat(scale, 1)
            np.testing.assert_array_equal(found, expected)


def test_missing_images_are_white_and_one_class_fills_the_rows() -> None:
    images, labels = noise(5, 0) // 2, np.array([0, 0, 0, 0, 1])
    picture = np.asarray(grid.image_grid(images, labels, ["", ""], 2, 4, 1))
    left, top = 2 * grid.MARGIN, grid.MARGIN + SIZE + grid.GAP
    np.testing.assert_array_equal(picture[top : top + SIZE, left : left + SIZE], images[4])
    assert (picture[top:, left + SIZE :] == 255).all()
    one = np.asarray(grid.image_grid(images, np.zeros(5, int), [""], 2, 3, 1))
    np.testing.assert_array_equal(one[top : top + SIZE, left : left + SIZE], images[3])


@given(st.integers(8, 96))
def test_cells_are_legible(size: int) -> None:
    assert 48 <= size * grid.cell_scale(size) <= 96


@given(st.lists(st.integers(0, 999), min_size=1), st.integers(1, 20))
def test_spread_picks_from_first_to_last(labels: list[int], rows: int) -> None:
    picked = grid.spread(np.array(labels), rows)
    assert picked == sorted(set(picked)) and set(picked) <= set(labels)
    assert len(picked) == min(rows, len(set(labels))) and picked[0] == min(labels)
    assert rows == 1 or picked[-1] == max(labels)


def test_names_are_whole_or_shortened() -> None:
    assert grid.shorten(CLASSES[0]) == CLASSES[0]
    assert grid.shorten("n00000001_" + "x" * 30) == "n00000001_" + "x" * 11 + "…"
    whole = grid.image_grid(noise(3, 0), np.arange(3), CLASSES, 3, 1).width
    assert whole > grid.image_grid(noise(3, 0), np.arange(3), ["a", "b", "c"], 3, 1).width + 80


def test_save_grid_replaces_whole_files_only(tmp_path: Path) -> None:
    path = tmp_path / "grid.png"
    grid.save_grid(path, noise(3, 0), np.arange(3), CLASSES, 3, 1)
    with Image.open(path) as picture:
        picture.verify()
        assert picture.format == "PNG"
    before = path.read_bytes()
    with pytest.raises(UserError, match="no images"):
        grid.save_grid(path, noise(0, 0), np.arange(0), CLASSES, 3, 1)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["grid.png"]


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=60), st.integers(0, 9))
def test_smooth_is_the_mean_of_the_neighbours(values: list[float], reach: int) -> None:
    expected = [
        np.mean(values[max(i - reach, 0) : i + min(i, reach) + 1]) for i in range(len(values))
    ]
    np.testing.assert_allclose(grid.smooth(np.array(values), reach), expected, atol=1e-12)


# --- the report --------------------------------------------------------------------------------


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
    assert max(map(len, text.splitlines())) <= report.WIDTH


def test_summary_holds_the_numbers(words: list[str], tmp_path: Path) -> None:
    report.main(words)
    lines = (tmp_path / "out" / "summary.txt").read_text().splitlines()
    rows = [line.split() for line in lines]
    assert ["fid", "heun-18", "0", "34.5", "↓", "12", "12.25", "54.5", "4,321", "9"] in rows
    assert ["fid", "heun-18", "1", "35.5", "↓", "12", "12.25", "55.5", "4,321", "9"] in rows
    assert ["recall", "heun-18", "1", "0.625", "0.0125", "↑", "9"] in rows
    assert ["class_accuracy", "heun-18", "0", "0.875", "↑", "12", "0.9375"] in rows
    assert ["heun-18", "1", "12", "36", "36", "77.5", "1.5", "CPU", "2", "fp32", "1"] in rows
    assert lines[1].startswith("Training: 960 images in 30 steps, wall time 0:03, loss 0.06782 ")
    assert "Note: few images" in lines
    assert lines[-1] == "Protocol: extractor: inception-v3-compat, reference: {recipe: box}"


class Cells(HTMLParser):
    """Collects table rows, tags that load something, and unclosed tags."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.open: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [f"{tag} {k}" for k, _ in attrs if k in ("src", "href", "action", "data")]
        if tag != "meta":
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and {"td", "th"} & set(self.open):
            self.rows[-1].append(data)


def test_table_is_whole_html_without_network(words: list[str], tmp_path: Path) -> None:
    report.main(words)
    text = (tmp_path / "out" / "table.html").read_text()
    page = Cells()
    page.feed(text)
    page.close()
    assert not page.open and not page.loads
    assert "http" not in text and "url(" not in text and "@import" not in text
    first = ["FID <of all>", "heun-18", "0", "34.5", "↓", "12", "12.25", "54.5", "4,321", "9"]
    assert [*first, "36", "77.5", "1.5"] in page.rows
    assert [CLASSES[1], "0.5", "0.5"] in page.rows and [CLASSES[2]] in page.rows
    assert "inception-v3-compat" in text


def test_picture_has_real_images_left_and_samples_right(tmp_path: Path) -> None:
    report.main(build(tmp_path, seeds=(0,)))
    pixels = np.asarray(Image.open(tmp_path / "out" / "samples_vs_real.png"))
    size, top = 4 * SIZE, grid.MARGIN + grid.TITLE_HEIGHT
    right = pixels.shape[1] - grid.MARGIN - 2 * size - grid.GAP
    left = right - 2 * grid.MARGIN - 2 * size - grid.GAP
    for row in range(3):
        for column in range(2):
            y, x = top + row * (size + grid.GAP), column * (size + grid.GAP)
            real = pixels[y : y + size : 4, left + x : left + x + size : 4]
            made = pixels[y : y + size : 4, right + x : right + x + size : 4]
            np.testing.assert_array_equal(real, noise(12, 99)[4 * row + column])
            np.testing.assert_array_equal(made, noise(12, 0)[row + 3 * column])


def test_samples_without_classes(tmp_path: Path) -> None:
    arguments = build(tmp_path, seeds=(0,))
    np.save(tmp_path / "sample" / "seed0" / "labels.npy", np.full(12, -1))
    report.main(arguments)
    pixels = np.asarray(Image.open(tmp_path / "out" / "samples_vs_real.png"))
    size, bottom = 4 * SIZE, pixels.shape[0] - grid.MARGIN
    right = pixels.shape[1] - grid.MARGIN
    left = right - 2 * size - grid.GAP - 2 * grid.MARGIN
    for edge, expected in ((right, noise(12, 0)[5]), (left, noise(12, 99)[11])):
        last = pixels[bottom - size : bottom : 4, edge - size : edge : 4]
        np.testing.assert_array_equal(last, expected)


def test_no_metric_and_no_accuracy(tmp_path: Path) -> None:
    arguments = build(tmp_path, seeds=(0,))
    path = tmp_path / "heun-18-seed0.json"
    evaluation = json.loads(path.read_text()) | {"metrics": [], "class_accuracy": None}
    evaluation["sample"]["images_per_s"] = None  # all batches were there already
    path.write_text(json.dumps(evaluation))
    report.main(arguments)
    assert {path.name for path in (tmp_path / "out").iterdir()} == OUTPUTS


@pytest.mark.parametrize("low", [-0.002, 0.0, 3.0])
def test_distances_of_any_sign_are_drawn(low: float) -> None:
    bracket = {"num_images": 9, "floor": low, "value": low + 0.5, "ceiling": 900.0}
    row = {"label": "d", "sampler": "s", "seed": 0, "bracket": bracket}
    assert grid.distance_chart("t", [row]).startswith(b"\x89PNG")


# --- bad input ---------------------------------------------------------------------------------


def damage(root: Path, name: str) -> None:
    """Break one input below `root`."""
    if name == "no curve":
        (root / "curve.jsonl").unlink()
    changes = {
        "empty curve": ("curve.jsonl", ""),
        "cut curve": ("curve.jsonl", json.dumps(curve_row(1)) + '\n{"step": 2, "ima'),
        "bad curve": ("curve.jsonl", '{"step": 2}\n'),
        "no metrics": ("heun-18-seed1.json", "{}"),
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
        ("cut curve", "line 2 of .*curve.jsonl is no JSON"),
        ("bad curve", "line 1 of .*curve.jsonl has no valid 'loss'"),
        ("no metrics", "seed1.json has no valid 'metrics'"),
        ("bad sample", "sample.json has no valid 'sampler'"),
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
    names = ["curve", "distance", "grid", "samples", "table", "workflow"]
    assert [path.stem for path in captions] == names
    assert all(2 <= len(path.read_text().splitlines()) <= 4 for path in captions)
