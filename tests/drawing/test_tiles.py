"""Grids: the right image in each cell, whole files, no charts."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.base.errors import UserError
from pipeline.base.text import shorten
from pipeline.drawing import tiles
from tests.report_inputs import CLASSES, SIZE, noise


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 4), st.integers(0, 2**16))
def test_grid_shows_each_image_in_its_cell(rows: int, columns: int, scale: int, seed: int) -> None:
    images, labels = noise(24, seed, 9) // 2, np.random.default_rng(seed).permutation(24) % 4
    classes = ["", "", "", ""]  # no names: the first cell follows the margins
    picture = np.asarray(tiles.image_grid(images, labels, classes, rows + 1, columns, scale))
    pitch, size = 9 * scale + tiles.GAP, 9 * scale
    shown = np.linspace(0, 3, rows + 1).round().astype(int)
    for row, label in enumerate(shown):
        for column, index in enumerate(np.flatnonzero(labels == label)[:columns]):
            top, left = tiles.MARGIN + row * pitch, 2 * tiles.MARGIN + column * pitch
            found = picture[top : top + size, left : left + size]
            expected = images[index].repeat(scale, 0).repeat(scale, 1)
            np.testing.assert_array_equal(found, expected)


def test_missing_images_are_white_and_one_class_fills_the_rows() -> None:
    images, labels = noise(5, 0) // 2, np.array([0, 0, 0, 0, 1])
    picture = np.asarray(tiles.image_grid(images, labels, ["", ""], 2, 4, 1))
    left, top = 2 * tiles.MARGIN, tiles.MARGIN + SIZE + tiles.GAP
    np.testing.assert_array_equal(picture[top : top + SIZE, left : left + SIZE], images[4])
    assert (picture[top:, left + SIZE :] == 255).all()
    one = np.asarray(tiles.image_grid(images, np.zeros(5, int), [""], 2, 3, 1))
    np.testing.assert_array_equal(one[top : top + SIZE, left : left + SIZE], images[3])


def test_images_without_classes_fill_the_rows() -> None:
    images, none = noise(9, 0), np.full(9, -1)
    found = tiles.image_grid(images, none, CLASSES, 2, 3, 1)
    expected = tiles.image_grid(images, np.zeros(9, int), [tiles.NO_CLASS], 2, 3, 1)
    np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))


def test_one_panel_without_classes_makes_all_of_them_so() -> None:
    panels = [
        tiles.Panel("", noise(9, 0), np.full(9, -1)),
        tiles.Panel("", noise(9, 1), np.arange(9)),
    ]
    single = [tiles.one_class(panel, 4) for panel in panels]
    np.testing.assert_array_equal(single[0].images, noise(9, 0)[:4])
    np.testing.assert_array_equal(single[1].images, noise(9, 1)[[0, 2, 5, 8]])
    expected = tiles.panel_grid(single, [tiles.NO_CLASS], 2, 2, 1)
    found = tiles.panel_grid(panels, [""] * 9, 2, 2, 1)
    np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))


@given(st.integers(8, 96))
def test_cells_are_legible(size: int) -> None:
    assert 48 <= size * tiles.cell_scale(size) <= 96


@given(st.lists(st.integers(0, 999), min_size=1), st.integers(1, 20))
def test_spread_picks_from_first_to_last(labels: list[int], rows: int) -> None:
    picked = tiles.spread(np.array(labels), rows)
    assert picked == sorted(set(picked)) and set(picked) <= set(labels)
    assert len(picked) == min(rows, len(set(labels))) and picked[0] == min(labels)
    assert rows == 1 or picked[-1] == max(labels)


def test_names_are_whole_or_shortened() -> None:
    assert shorten(CLASSES[0], tiles.NAME_LENGTH) == CLASSES[0]
    assert shorten("n00000001_" + "x" * 30, 22) == "n00000001_" + "x" * 11 + "…"
    whole = tiles.image_grid(noise(3, 0), np.arange(3), CLASSES, 3, 1).width
    assert whole > tiles.image_grid(noise(3, 0), np.arange(3), ["a", "b", "c"], 3, 1).width + 80


def test_save_grid_replaces_whole_files_only(tmp_path: Path) -> None:
    path = tmp_path / "grid.png"
    tiles.save_grid(path, noise(3, 0), np.arange(3), CLASSES, 3, 1)
    with Image.open(path) as picture:
        picture.verify()
        assert picture.format == "PNG"
    before = path.read_bytes()
    with pytest.raises(UserError, match="no images"):
        tiles.save_grid(path, noise(0, 0), np.arange(0), CLASSES, 3, 1)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["grid.png"]


def test_grids_and_tables_need_no_matplotlib() -> None:
    modules = "pipeline.drawing.pictures, pipeline.reporting.tables"
    code = f"import sys; sys.modules['matplotlib'] = None; import {modules}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_rows_have_the_names_of_their_classes() -> None:
    labels = np.array([2, 0])
    assert tiles.row_names(labels, CLASSES) == [CLASSES[2], CLASSES[0]]
    assert tiles.row_names(np.array([-1, -1]), None) == [tiles.NO_CLASS] * 2


def test_classes_that_all_panels_have_are_shown() -> None:
    every, some = np.arange(9) % 3, np.full(9, 2)
    panels = [tiles.Panel("", noise(9, k), labels) for k, labels in enumerate((every, some, every))]
    common = [tiles.Panel("", p.images[p.labels == 2], p.labels[p.labels == 2]) for p in panels]
    pictures = [tiles.panel_grid(each, ["a", "b", "c"], 9, 2, 1) for each in (panels, common)]
    np.testing.assert_array_equal(*map(np.asarray, pictures))
