"""Checkpoints and weights: complete or not there, newest valid first, nothing executed."""

import multiprocessing
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pipeline import checkpoint
from pipeline.errors import UserError


def state(step: int) -> dict:
    return {"step": step, "net": {"weight": torch.full((100,), float(step))}}


def test_keeps_the_newest(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        checkpoint.save(tmp_path, step, state(step), keep=2)
    assert [checkpoint.step_of(p) for p in checkpoint.checkpoints(tmp_path)] == [3, 4]


def test_newest_up_to_a_step(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, step, state(step), keep=9)
    assert checkpoint.load_newest(tmp_path, last_step=2)["step"] == 2
    assert checkpoint.load_newest(tmp_path, last_step=0) is None


@pytest.mark.parametrize("damage", ["truncated", "empty", "text"])
def test_damaged_is_named_and_skipped(
    tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in (1, 2):
        checkpoint.save(tmp_path, step, state(step), keep=9)
    newest = checkpoint.checkpoints(tmp_path)[-1]
    content = {"truncated": newest.read_bytes()[:-200], "empty": b"", "text": b"hello"}[damage]
    newest.write_bytes(content)
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
    checkpoint.save_weights(path, {"a": torch.arange(3.0)}, {"images": 7})
    tensors, about = checkpoint.load_weights(path)
    assert tensors["a"].tolist() == [0, 1, 2] and about == {"images": 7}


def test_bad_weights_get_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run `make train`"):
        checkpoint.load_weights(tmp_path / "none.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="not of this pipeline"):
        checkpoint.load_weights(tmp_path / "other.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(UserError, match="damaged"):
        checkpoint.load_weights(tmp_path / "cut.safetensors")


def test_a_full_disk_gets_one_sentence(small_disk: Path) -> None:
    checkpoint.save(small_disk, 1, state(1), keep=1)
    large = torch.zeros(10**6)  # 4 MB on a disk of 1 MB
    with pytest.raises(UserError, match="space on the disk|no space left"):
        checkpoint.save(small_disk, 2, {"net": large}, keep=1)
    with pytest.raises(UserError, match="space on the disk|no space left"):
        checkpoint.save_weights(small_disk / "w", {"a": large}, {})
    assert [p.name for p in small_disk.iterdir()] == ["step-0000000001.pt"]
    assert checkpoint.load_newest(small_disk, 9)["step"] == 1


def test_what_a_kill_left_is_deleted(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 1, state(1), keep=1)
    (tmp_path / ".step-0000000002.pt.123.tmp").write_bytes(b"half")
    checkpoint.remove_abandoned(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["step-0000000001.pt"]


def _hold(folder: Path, ready: object, release: object) -> None:
    with checkpoint.locked(folder):
        ready.set()
        release.wait(30)


def test_a_second_trainer_names_the_first(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready, release = context.Event(), context.Event()
    holder = context.Process(target=_hold, args=(tmp_path, ready, release))
    holder.start()
    assert ready.wait(30)
    with pytest.raises(UserError, match=f"in use by process {holder.pid} on"):
        with checkpoint.locked(tmp_path):
            pass
    holder.kill()  # SIGKILL: the kernel frees the lock
    holder.join()
    with checkpoint.locked(tmp_path):
        pass
