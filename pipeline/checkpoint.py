"""Checkpoints: complete or not there at all, newest valid one first; and final weights."""

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from pipeline.errors import UserError
from pipeline.files import atomic


def step_of(path: Path) -> int:
    """Optimiser step in a checkpoint's name."""
    return int(path.stem.removeprefix("step-"))


def checkpoints(folder: Path) -> list[Path]:
    """All checkpoints of a folder, oldest first."""
    return sorted(folder.glob("step-*.pt"))


def save(folder: Path, step: int, state: dict[str, Any], keep: int) -> None:
    """Write `step-<step>.pt` atomically, then delete all but the `keep` newest up to it."""
    path = folder / f"step-{step:010d}.pt"
    with atomic(path) as temporary, _writing(path):
        torch.save(state, temporary)
    older = [path for path in checkpoints(folder) if step_of(path) <= step]
    for path in older[:-keep]:
        path.unlink()


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn what torch and safetensors raise where a file cannot be written into a UserError."""
    try:
        yield
    except (RuntimeError, SafetensorError) as error:
        raise UserError(
            f"{path} could not be written ({str(error).splitlines()[0]}): is there space on the "
            f"disk of {path.parent}? The same command goes on from the checkpoint before"
        ) from error


def remove_abandoned(folder: Path) -> None:
    """Delete temporary files that a killed trainer has left; only under the folder's lock."""
    for path in folder.glob(".*.tmp"):
        path.unlink()


def load_newest(folder: Path, last_step: int) -> dict[str, Any] | None:
    """The newest readable checkpoint up to `last_step`; damaged ones are named and skipped."""
    for path in reversed(checkpoints(folder)):
        if step_of(path) > last_step:
            continue
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:  # any damage shows as some exception of the unpickler or zip
            print(f"checkpoint {path} is damaged ({type(error).__name__}): skipped", flush=True)
    return None


def save_weights(path: Path, state: dict[str, torch.Tensor], about: dict[str, Any]) -> None:
    """Write a state dict as safetensors with `about` (JSON) in its metadata, atomically."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    with atomic(path) as temporary, _writing(path):
        save_file(tensors, temporary, metadata={"pipeline": json.dumps(about, sort_keys=True)})


def load_weights(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and metadata of weights written by `save_weights`.

    Raises UserError where the file is missing, damaged or of another program.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})["pipeline"])
            return {name: file.get_tensor(name) for name in file.keys()}, about  # noqa: SIM118
    except FileNotFoundError as error:
        raise UserError(f"weights {path} are missing: run `make train`") from error
    except (SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise UserError(f"weights {path} are damaged or not of this pipeline ({error})") from error


# --- one trainer a folder ----------------------------------------------------------------------


def _holder(path: Path) -> str:
    try:
        held = json.loads(path.read_text())
        return f"process {held['pid']} on {held['host']} (since {held['since']})"
    except (OSError, ValueError, KeyError):
        return "another process"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the run folder's lock; the kernel frees it when the holder dies in any way.

    Raises UserError naming the holder where another trainer has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "lock"
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"{folder} is in use by {_holder(path)}: wait for it or stop it with kill -TERM"
            ) from error
        file.truncate(0)
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since}))
        file.flush()
        yield


def wait_until_free(folder: Path, every: float = 2.0, remind: float = 60.0) -> None:
    """Wait while another process holds the folder's lock, naming the holder now and then."""
    path = folder / "lock"
    told = -remind
    while path.exists():
        with path.open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() - told >= remind:
                    print(
                        f"waiting: {folder} is in use by {_holder(path)}; "
                        "stop it with kill -TERM to go on from its checkpoint",
                        flush=True,
                    )
                    told = time.monotonic()
        time.sleep(every)
