"""Order of images, conversion of pixels, and packs that are not what they should be."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import data
from pipeline.errors import UserError
from tests.conftest import write_pack


def test_all_levels_survive_the_round_trip() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(data.to_uint8(data.to_float(levels)), levels)
    assert data.to_float(levels).min() == -1 and data.to_float(levels).max() == 1


def test_rounds_to_nearest_and_clamps() -> None:
    values = torch.tensor([-2.0, -1.0, 0.4 / 127.5 - 1, 0.6 / 127.5 - 1, 1.0, 7.0])
    assert data.to_uint8(values).tolist() == [0, 0, 0, 1, 255, 255]


@settings(max_examples=30, deadline=None)
@given(size=st.integers(1, 40), seed=st.integers(0, 2**64 - 1), epoch=st.integers(0, 5))
def test_an_epoch_is_a_permutation(size: int, seed: int, epoch: int) -> None:
    positions = np.arange(epoch * size, (epoch + 1) * size)
    assert sorted(data.rows_at(positions, seed, size)) == list(range(size))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 300), min_size=1, max_size=20), st.integers(1, 50))
def test_a_position_names_its_image_in_any_batch(positions: list[int], size: int) -> None:
    together = data.rows_at(np.array(positions), 7, size)
    alone = [int(data.rows_at(np.array([p]), 7, size)[0]) for p in positions]
    assert together.tolist() == alone


def test_epochs_and_seeds_differ() -> None:
    orders = [
        data.rows_at(np.arange(k * 50, k * 50 + 50), seed, 50) for k in (0, 1) for seed in (0, 1)
    ]
    assert len({tuple(order) for order in orders}) == 4


def test_large_seeds_that_differ_by_one_differ() -> None:
    orders = [data.rows_at(np.arange(50), seed, 50).tolist() for seed in (2**64 - 1, 2**64 - 2)]
    assert orders[0] != orders[1]


def test_batch_holds_the_images_of_its_positions(tmp_path: Path) -> None:
    record = write_pack(tmp_path, num=20, size=8)
    pack = data.open_pack(tmp_path, record)
    positions = np.arange(5, 45)  # across three epochs
    images, labels = data.load_batch(pack, positions, 3, False, torch.device("cpu"))
    rows = data.rows_at(positions, 3, 20)
    expected = torch.from_numpy(np.asarray(pack.images[rows])).permute(0, 3, 1, 2)
    assert torch.equal(data.to_uint8(images), expected)
    assert labels.tolist() == pack.labels[rows].tolist()


def test_flip_mirrors_about_half(tmp_path: Path) -> None:
    pack = data.open_pack(tmp_path, write_pack(tmp_path, num=20, size=8))
    positions = np.arange(400)
    plain, _ = data.load_batch(pack, positions, 3, False, torch.device("cpu"))
    flipped, _ = data.load_batch(pack, positions, 3, True, torch.device("cpu"))
    same = (plain == flipped).flatten(1).all(1)
    mirrored = (plain == flipped.flip(3)).flatten(1).all(1)
    assert (same | mirrored).all()
    assert 150 < mirrored.sum() < 250


def test_missing_pack_says_make_data(tmp_path: Path) -> None:
    record = write_pack(tmp_path / "a", num=4, size=8)
    with pytest.raises(UserError, match="run `make data`"):
        data.open_pack(tmp_path / "b", record)


def test_other_pack_is_refused(tmp_path: Path) -> None:
    record = write_pack(tmp_path / "a", num=4, size=8)
    write_pack(tmp_path / "b", num=4, size=8, seed=1)
    with pytest.raises(UserError, match="holds other images than its record"):
        data.open_pack(tmp_path / "b", record)


def test_labels_that_do_not_match_the_classes(tmp_path: Path) -> None:
    record = write_pack(tmp_path, num=4, size=8)
    np.save(tmp_path / "labels.npy", np.array([0, 1, 2, 9]))
    with pytest.raises(UserError, match="do not match its 2 classes"):
        data.open_pack(tmp_path, record)


def test_truncated_pack_is_refused(tmp_path: Path) -> None:
    record = write_pack(tmp_path, num=4, size=8)
    path = tmp_path / "images.npy"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"no readable \.npy|damaged"):
        data.open_pack(tmp_path, record)


def test_pack_that_moved_is_the_same_pack(tmp_path: Path) -> None:
    record = write_pack(tmp_path / "a", num=4, size=8)
    shutil.move(tmp_path / "a", tmp_path / "b")
    assert len(data.open_pack(tmp_path / "b", json.loads(json.dumps(record)))) == 4
