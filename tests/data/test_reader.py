"""Order of images, conversion of pixels, ways to read a pack, and packs that are refused."""

import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.base.errors import UserError
from pipeline.data import reader as reader_module
from pipeline.data.pack import Hashes, Pack, Record, open_pack
from pipeline.data.reader import (
    Mapped,
    Reader,
    Resident,
    copy_wanted,
    free_memory,
    load_batch,
    open_reader,
    rows_at,
    to_float,
    to_uint8,
)
from pipeline.training import trainer
from tests.conftest import ROOT, write_pack

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


def small_pack(folder: Path, num: int = 20) -> Pack:
    return open_pack(folder, write_pack(folder, num=num, size=8))


# --- pixels --------------------------------------------------------------------------------------


def test_all_levels_survive_the_round_trip() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(to_float(levels)), levels)
    assert to_float(levels).min() == -1 and to_float(levels).max() == 1


def test_rounds_to_nearest_and_clamps() -> None:
    values = torch.tensor([-2.0, -1.0, 0.4 / 127.5 - 1, 0.6 / 127.5 - 1, 1.0, 7.0])
    assert to_uint8(values).tolist() == [0, 0, 0, 1, 255, 255]


# --- order ---------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(size=st.integers(1, 40), seed=st.integers(0, 2**64 - 1), epoch=st.integers(0, 5))
def test_an_epoch_is_a_permutation(size: int, seed: int, epoch: int) -> None:
    positions = np.arange(epoch * size, (epoch + 1) * size)
    assert sorted(rows_at(positions, seed, size)) == list(range(size))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 300), min_size=1, max_size=20), st.integers(1, 50))
def test_a_position_names_its_image_in_any_batch(positions: list[int], size: int) -> None:
    together = rows_at(np.array(positions), 7, size)
    alone = [int(rows_at(np.array([p]), 7, size)[0]) for p in positions]
    assert together.tolist() == alone


@settings(max_examples=60, deadline=None)
@given(
    world=st.integers(1, 8),
    passes=st.integers(1, 4),
    micro=st.integers(1, 6),
    size=st.integers(1, 50),
    start=st.integers(0, 30),
)
def test_the_order_is_the_same_however_a_step_is_shared(
    world: int, passes: int, micro: int, size: int, start: int
) -> None:
    """Also from any step on, which is what a resume reads."""
    batch = world * passes * micro
    whole = rows_at(np.arange((start + 3) * batch), 5, size)
    for step in range(start, start + 3):
        shares = [
            rows_at(trainer.share(step * batch, number, rank, world, micro), 5, size)
            for number in range(passes)
            for rank in range(world)
        ]
        assert np.concatenate(shares).tolist() == whole[step * batch :][:batch].tolist()


@settings(max_examples=30, deadline=None)
@given(world=st.integers(1, 8), passes=st.integers(1, 4), micro=st.integers(1, 6))
def test_what_is_read_ahead_is_the_next_share(world: int, passes: int, micro: int) -> None:
    calls = [(step * world * passes * micro, k) for step in range(3) for k in range(passes)]
    for rank in range(world):
        shares = [trainer.share(first, number, rank, world, micro) for first, number in calls]
        for share, following in pairwise(shares):
            assert np.array_equal(share + world * micro, following)


def test_epochs_and_seeds_differ() -> None:
    orders = [rows_at(np.arange(k * 50, k * 50 + 50), seed, 50) for k in (0, 1) for seed in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4


def test_large_seeds_that_differ_by_one_differ() -> None:
    orders = [rows_at(np.arange(50), seed, 50).tolist() for seed in (2**64 - 1, 2**64 - 2)]
    assert orders[0] != orders[1]


# --- batches -------------------------------------------------------------------------------------


def mapped(pack: Pack) -> Reader:
    return Mapped(pack, 3, CPU)


def mapped_ahead(pack: Pack) -> Reader:
    return Mapped(pack, 3, CPU, ahead=40)


def resident(pack: Pack) -> Reader:
    return Resident(pack, 3, CPU)


READERS = pytest.mark.parametrize("make", [mapped, mapped_ahead, resident])
Make = Callable[[Pack], Reader]


@READERS
def test_batch_holds_the_images_of_its_positions(make: Make, tmp_path: Path) -> None:
    pack = small_pack(tmp_path)
    reader = make(pack)
    for first in (5, 45, 85, 7):  # each across three epochs; the last one is no next one
        positions = np.arange(first, first + 40)
        images, labels = load_batch(reader, positions, False)
        rows = rows_at(positions, 3, 20)
        expected = torch.from_numpy(np.asarray(pack.images[rows])).permute(0, 3, 1, 2)
        assert torch.equal(to_uint8(images), expected)
        assert labels.tolist() == pack.labels[rows].tolist()


@READERS
def test_flip_mirrors_about_half(make: Make, tmp_path: Path) -> None:
    reader, positions = make(small_pack(tmp_path)), np.arange(400)
    plain, _ = load_batch(reader, positions, False)
    flipped, _ = load_batch(reader, positions, True)
    same = (plain == flipped).flatten(1).all(1)
    mirrored = (plain == flipped.flip(3)).flatten(1).all(1)
    assert (same | mirrored).all()
    assert 150 < mirrored.sum() < 250


def test_all_ways_to_read_give_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        reader_module, "CHUNK", 1000
    )  # the copy takes several parts, the last one smaller
    pack = small_pack(tmp_path, num=23)
    readers = [make(pack) for make in (mapped, mapped_ahead, resident)]
    for first in (0, 40, 80):
        positions = np.arange(first, first + 40)
        batches = [load_batch(reader, positions, True) for reader in readers]
        for images, labels in batches[1:]:
            assert images.stride() == batches[0][0].stride()
            assert torch.equal(images, batches[0][0]) and torch.equal(labels, batches[0][1])


def test_a_new_reader_goes_on_where_another_stopped(tmp_path: Path) -> None:
    pack = small_pack(tmp_path)
    before, after = mapped_ahead(pack), mapped_ahead(pack)
    steps = [np.arange(k * 40, k * 40 + 40) for k in range(5)]
    whole = [load_batch(before, step, True)[0] for step in steps]
    assert torch.equal(load_batch(after, steps[4], True)[0], whole[4])


# --- reading ahead -------------------------------------------------------------------------------


def test_the_next_batch_is_gathered_in_one_other_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = Mapped(small_pack(tmp_path), 3, CPU, ahead=40)
    gather, asked = reader.gather, []

    def seen(positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        asked.append((int(positions[0]), threading.current_thread().name))
        return gather(positions)

    monkeypatch.setattr(reader, "gather", seen)
    for first in (0, 40, 80):
        reader.read(np.arange(first, first + 40))
    reader._thread.shutdown()
    here = threading.current_thread().name
    assert asked == [(0, here), *((first, "read-ahead_0") for first in (40, 80, 120))]


def test_what_fails_while_reading_ahead_is_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = Mapped(small_pack(tmp_path), 3, CPU, ahead=40)
    gather = reader.gather

    def fails_ahead(positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if threading.current_thread() is not threading.main_thread():
            raise OSError("the disk is gone")
        return gather(positions)

    monkeypatch.setattr(reader, "gather", fails_ahead)
    reader.read(np.arange(40))
    with pytest.raises(OSError, match="the disk is gone"):
        reader.read(np.arange(40, 80))


def test_a_process_that_reads_ahead_ends(tmp_path: Path) -> None:
    write_pack(tmp_path, num=20, size=8)
    code = f"""
import numpy as np, torch
from pathlib import Path
from pipeline.data.pack import open_pack, read_record
from pipeline.data.reader import Mapped
folder = Path({str(tmp_path)!r})
pack = open_pack(folder, read_record(folder))
Mapped(pack, 3, torch.device("cpu"), ahead=4).read(np.arange(4))
raise SystemExit(7)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=600)
    assert done.returncode == 7


# --- the choice between the ways to read ---------------------------------------------------------


def set_free(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(reader_module, "free_memory", lambda device: size)


@pytest.mark.parametrize(
    ("setting", "device", "room", "copies"),
    [
        ("auto", CUDA, 4.0, True),
        ("auto", CUDA, 3.99, False),
        ("auto", CPU, 1000, False),
        (False, CUDA, 1000, False),
        (True, CUDA, 1.0, True),
        (True, CPU, 1.0, True),
    ],
)
def test_what_is_copied(
    setting: str | bool,
    device: torch.device,
    room: float,
    copies: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pack = small_pack(tmp_path)
    set_free(monkeypatch, int(room * (20 * 8 * 8 * 3 + 20 * 8)))
    assert copy_wanted(pack, setting, device)[0] == copies


def test_true_where_it_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack = small_pack(tmp_path)
    huge = np.lib.stride_tricks.as_strided(pack.images, (1_000_000, 64, 64, 3), (0, 0, 0, 0))
    set_free(monkeypatch, 10_000_000_000)
    with pytest.raises(UserError) as caught:
        open_reader(Pack(huge, pack.labels, pack.record), 0, CUDA, True, 0, True)
    assert str(caught.value) == (
        "runtime.data_on_device=true but the pack has 12.29 GB, cuda:0 has 10.00 GB free: "
        "use auto or false, which change no result"
    )


def test_free_memory_of_a_device_is_asked_of_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (5 + device.index, 9))
    assert free_memory(torch.device("cuda", 2)) == 7


def test_free_memory_of_the_machine() -> None:
    psutil = pytest.importorskip("psutil")
    free = psutil.virtual_memory().available
    assert 0.5 * free < free_memory(CPU) < 2 * free


def test_the_choice_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    pack = small_pack(tmp_path)
    quiet = open_reader(pack, 0, CPU, True, 4, False)
    assert isinstance(quiet, Resident) and capsys.readouterr().out == ""
    open_reader(pack, 0, CPU, True, 4, True)
    assert "images: copied to cpu (runtime.data_on_device=true: " in capsys.readouterr().out
    reader = open_reader(pack, 0, CPU, "auto", 4, True)
    said = capsys.readouterr().out
    assert said == "images: memory-mapped (runtime.data_on_device=auto on cpu)\n"
    assert isinstance(reader, Mapped) and reader.ahead == 4


@pytest.mark.skipif(not torch.cuda.is_available(), reason="NOT TESTED: needs a CUDA device")
def test_all_ways_to_read_give_the_same_bits_on_a_gpu(tmp_path: Path) -> None:
    pack = small_pack(tmp_path)
    readers: list[Reader] = [
        Mapped(pack, 3, CUDA, 40),
        Resident(pack, 3, CUDA),
        mapped(pack),
    ]
    for first in (0, 40, 80):
        positions = np.arange(first, first + 40)
        batches = [load_batch(reader, positions, True) for reader in readers]
        for images, labels in batches[:2]:
            assert torch.equal(images, batches[0][0]) and torch.equal(labels, batches[0][1])
        # the pixels are exact; their float conversion is rounded by each kind of device
        assert torch.equal(to_uint8(batches[0][0]).cpu(), to_uint8(batches[2][0]))


# --- a pack larger than memory -------------------------------------------------------------------

LIMIT = 2 * 2**30  # bytes of private memory; read-only maps of files do not count
LARGER = """
import resource, sys
from pathlib import Path
import numpy as np, torch
from pipeline.data.pack import open_pack, read_record
from pipeline.data.reader import Mapped, rows_at
folder, num = Path(sys.argv[1]), int(sys.argv[2])
limit = int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
pack = open_pack(folder, read_record(folder))
assert pack.images.nbytes > 2.5 * limit
reader = Mapped(pack, 3, torch.device("cpu"), ahead=64)
for first in range(0, 256, 64):
    positions = np.arange(first, first + 64)
    pixels, labels = reader.read(positions)
    rows = torch.from_numpy(rows_at(positions, 3, num))
    assert rows.min() < num / 8 and rows.max() > num * 7 / 8
    assert torch.equal(pixels, (rows % 251).to(torch.uint8).view(-1, 1, 1, 1).expand(pixels.shape))
    assert torch.equal(labels, rows % 2)
    print("read", len(pixels), flush=True)
try:
    np.array(pack.images)
except MemoryError:
    print("too large to read whole")
"""


def write_sparse_pack(folder: Path, num: int, rows: np.ndarray) -> None:
    """A 64 px pack of `num` images of which only `rows` are written: row r is all r % 251."""
    record = Record(
        source="shapes", resolution=64, recipe="box", classes=["a", "b"], num_images=num,
        sha256=Hashes(images="", labels=""),
    )  # fmt: skip
    record.write(folder / "manifest.json")
    np.save(folder / "labels.npy", np.arange(num, dtype=np.int64) % 2)
    shape = (num, 64, 64, 3)
    images = np.lib.format.open_memmap(folder / "images.npy", "w+", np.uint8, shape)
    images[rows] = (rows % 251).astype(np.uint8)[:, None, None, None]


@pytest.mark.slow
def test_a_pack_larger_than_memory_is_read(tmp_path: Path) -> None:
    num = 500_000  # 6.1 GB
    write_sparse_pack(tmp_path, num, rows_at(np.arange(256), 3, num))
    assert (tmp_path / "images.npy").stat().st_blocks * 512 < 100_000_000
    command = [sys.executable, "-c", LARGER, str(tmp_path), str(num), str(LIMIT)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n") == ["read 64"] * 4 + ["too large to read whole", ""]


# --- packs that are not what they should be ------------------------------------------------------


def test_missing_pack_says_make_data(tmp_path: Path) -> None:
    record = write_pack(tmp_path / "a", num=4, size=8)
    with pytest.raises(UserError, match="run `make data`"):
        open_pack(tmp_path / "b", record)


def test_other_pack_is_refused(tmp_path: Path) -> None:
    record = write_pack(tmp_path / "a", num=4, size=8)
    write_pack(tmp_path / "b", num=4, size=8, seed=1)
    with pytest.raises(UserError, match="holds other images than its record"):
        open_pack(tmp_path / "b", record)


def test_labels_that_do_not_match_the_classes(tmp_path: Path) -> None:
    record = write_pack(tmp_path, num=4, size=8)
    np.save(tmp_path / "labels.npy", np.array([0, 1, 2, 9]))
    with pytest.raises(UserError, match="do not match its 2 classes"):
        open_pack(tmp_path, record)


def test_truncated_pack_is_refused(tmp_path: Path) -> None:
    record = write_pack(tmp_path, num=4, size=8)
    path = tmp_path / "images.npy"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"not a readable \.npy|damaged"):
        open_pack(tmp_path, record)


def test_pack_that_moved_is_the_same_pack(tmp_path: Path) -> None:
    record = write_pack(tmp_path / "a", num=4, size=8)
    shutil.move(tmp_path / "a", tmp_path / "b")
    assert len(open_pack(tmp_path / "b", Record.parse(record.to_json(), "a record"))) == 4
