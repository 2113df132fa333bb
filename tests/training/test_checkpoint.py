"""Checkpoints and weights: complete or not there, newest valid first, nothing executed."""

import multiprocessing
import pickle
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from pipeline.base import locks
from pipeline.base.errors import UserError
from pipeline.training import checkpoint, weights_file


def state(step: int) -> dict:
    return {"step": step, "net": {"weight": torch.full((100,), float(step))}}


def test_keeps_the_newest(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        checkpoint.save(tmp_path, step, state(step), keep=2)
    assert [checkpoint.step_of(p) for p in checkpoint.checkpoints(tmp_path)] == [3, 4]


def test_milestones_are_kept_beside_the_newest(tmp_path: Path) -> None:
    for step in range(1, 8):
        milestone = checkpoint.is_milestone(step, 10, 25)  # images 30 and 50: steps 3 and 5
        checkpoint.save(tmp_path, step, state(step), keep=1, milestone=milestone)
    assert [checkpoint.step_of(p) for p in checkpoint.checkpoints(tmp_path)] == [3, 5, 7]
    assert checkpoint.load_newest(tmp_path, last_step=6)["step"] == 5


@given(st.integers(1, 50), st.integers(1, 300), st.integers(1, 400))
def test_each_multiple_has_one_milestone(batch: int, every: int, steps: int) -> None:
    found = [k for k in range(1, steps + 1) if checkpoint.is_milestone(k, batch, every)]
    multiples = range(every, steps * batch + 1, every)
    assert found == sorted({-(-images // batch) for images in multiples})
    assert not any(checkpoint.is_milestone(k, batch, None) for k in range(1, steps + 1))


def test_a_writer_saves_what_it_was_given_then(tmp_path: Path) -> None:
    changing, gate = state(1), threading.Event()
    with checkpoint.Writer(tmp_path, keep=9) as writer:
        writer._thread.submit(gate.wait)  # the disk is slow
        writer.save(1, changing)
        changing["net"]["weight"].fill_(7.0)  # training goes on
        assert not checkpoint.checkpoints(tmp_path)
        threading.Timer(0.1, gate.set).start()
        writer.save(2, changing | {"step": 2})  # waits for the one before
        assert gate.is_set() and checkpoint.step_of(checkpoint.checkpoints(tmp_path)[0]) == 1
    for step, value in ((1, 1.0), (2, 7.0)):
        saved = checkpoint.load_newest(tmp_path, step)
        assert saved["step"] == step and saved["net"]["weight"].eq(value).all()


def test_a_writer_raises_at_the_next_save_or_at_the_end(small_disk: Path) -> None:
    large = {"net": torch.zeros(10**6)}  # 4 MB on a disk of 1 MB
    writer = checkpoint.Writer(small_disk, keep=1)
    for last in (writer.wait, lambda: writer.save(2, large)):
        writer.save(1, large)
        with pytest.raises(UserError, match="space on the disk|no space left"):
            last()
    with pytest.raises(UserError, match="space on the disk|no space left"), writer:
        writer.save(3, large)
    with pytest.raises(KeyError), writer:  # what came first is what is told
        writer.save(4, large)
        raise KeyError
    assert list(small_disk.iterdir()) == []


def test_newest_up_to_a_step(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, step, state(step), keep=9)
    assert checkpoint.load_newest(tmp_path, last_step=2)["step"] == 2
    assert checkpoint.load_newest(tmp_path, last_step=0) is None


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "one bit"])
def test_damaged_is_named_and_skipped(
    tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in (1, 2):
        checkpoint.save(tmp_path, step, state(step), keep=9)
    newest = checkpoint.checkpoints(tmp_path)[-1]
    whole = newest.read_bytes()
    place = whole.index(torch.full((100,), 2.0).numpy().tobytes()) + 40
    flipped = whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
    content = {"truncated": whole[:-200], "empty": b"", "text": b"hello", "one bit": flipped}
    newest.write_bytes(content[damage])
    assert checkpoint.load_newest(tmp_path, 9)["step"] == 1
    assert f"{newest} is damaged" in capsys.readouterr().out


def test_a_hostile_checkpoint_does_not_run(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"step": Bomb()}, tmp_path / "step-0000000001.pt", pickle_module=pickle)
    assert checkpoint.load_newest(tmp_path, 9) is None
    assert not (tmp_path / "ran").exists()


def test_weights_come_back_with_their_metadata(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    about = weights_file.WeightsAbout(config={"model": {}}, record={}, images=7)
    weights_file.save_weights(path, {"a": torch.arange(3.0)}, about)
    assert weights_file.load_weights(path)["a"].tolist() == [0, 1, 2]
    assert weights_file.read_about(path) == about


@pytest.mark.parametrize("read", [weights_file.load_weights, weights_file.read_about])
def test_bad_weights_get_one_sentence(tmp_path: Path, read: Callable[[Path], object]) -> None:
    with pytest.raises(UserError, match="run `make train`"):
        read(tmp_path / "none.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"of another program: they hold 1 tensors \(a\)"):
        read(tmp_path / "other.safetensors")
    torch.save({"net_model": {"a": torch.zeros(1)}}, tmp_path / "other.pt")
    with pytest.raises(UserError, match="are a checkpoint of torch.save, not safetensors: give"):
        read(tmp_path / "other.pt")
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        (tmp_path / "other.pkl").write_bytes(pickle.dumps({"a": 1}, protocol))
        with pytest.raises(UserError, match="are a pickle, not safetensors"):
            read(tmp_path / "other.pkl")
    (tmp_path / "short.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(UserError, match="damaged"):
        read(tmp_path / "short.safetensors")


def test_weights_that_are_cut_short_are_noticed_without_reading_them(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    about = weights_file.WeightsAbout(config={}, record={})
    weights_file.save_weights(path, {"a": torch.arange(1000.0)}, about)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="damaged"):
        weights_file.read_about(path)


def test_a_full_disk_gets_one_sentence(small_disk: Path) -> None:
    checkpoint.save(small_disk, 1, state(1), keep=1)
    large = torch.zeros(10**6)  # 4 MB on a disk of 1 MB
    with pytest.raises(UserError, match="space on the disk|no space left"):
        checkpoint.save(small_disk, 2, {"net": large}, keep=1)
    with pytest.raises(UserError, match="space on the disk|no space left"):
        about = weights_file.WeightsAbout(config={}, record={})
        weights_file.save_weights(small_disk / "w", {"a": large}, about)
    assert [p.name for p in small_disk.iterdir()] == ["step-0000000001.pt"]
    assert checkpoint.load_newest(small_disk, 9)["step"] == 1


def test_what_a_kill_left_is_deleted(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 1, state(1), keep=1)
    (tmp_path / ".step-0000000002.pt.123.tmp").write_bytes(b"half")
    checkpoint.remove_abandoned(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["step-0000000001.pt"]


def _hold(folder: Path, ready: object, release: object) -> None:
    with locks.locked(folder):
        ready.set()
        release.wait(600)


def test_a_second_trainer_names_the_first(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready, release = context.Event(), context.Event()
    holder = context.Process(target=_hold, args=(tmp_path, ready, release))
    holder.start()
    assert ready.wait(600)
    with pytest.raises(UserError, match=f"in use by process {holder.pid} on"):
        with locks.locked(tmp_path):
            pass
    holder.kill()  # SIGKILL: the kernel frees the lock
    holder.join()
    with locks.locked(tmp_path):
        pass
