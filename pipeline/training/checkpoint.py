"""Checkpoints: complete or not there at all, newest valid one first."""

import math
import zipfile
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from pipeline.base.errors import UserError
from pipeline.base.files import atomic, user_error_if_unwritable

MILESTONE = ".milestone"  # in the name of a checkpoint that is never deleted


def step_of(path: Path) -> int:
    """Optimiser step in a checkpoint's name."""
    return int(path.name.partition(".")[0].removeprefix("step-"))


def checkpoints(folder: Path) -> list[Path]:
    """All checkpoints of a folder, oldest first."""
    return sorted(folder.glob("step-*.pt"))


def is_milestone(step: int, batch: int, every: int | None) -> bool:
    """Whether `step` is the first at or after a multiple of `every` images; None: never."""
    return every is not None and step * batch // every > (step - 1) * batch // every


def save(
    folder: Path, step: int, state: dict[str, Any], keep: int, milestone: bool = False
) -> None:
    """Write `step-<step>.pt` atomically, then delete all but the `keep` newest up to it.

    A milestone is named `step-<step>.milestone.pt`; no milestone is ever deleted.
    """
    path = folder / f"step-{step:010d}{MILESTONE if milestone else ''}.pt"
    with atomic(path) as temporary, user_error_if_unwritable(path, RuntimeError):
        torch.save(state, temporary)
    older = [path for path in checkpoints(folder) if step_of(path) <= step]
    for path in older[:-keep]:
        if MILESTONE not in path.name:
            path.unlink()


def on_host(value: Any, before: Any = None) -> Any:
    """A copy in host memory of a state (tensors in dicts, lists and tuples).

    `before` is an earlier copy of the same state, whose memory is written again. From CUDA the
    copies go to pinned memory and may be under way still: synchronise before reading them.
    """
    # Tensors reuse pinned memory
    if isinstance(value, Tensor):
        if not isinstance(before, Tensor) or before.shape != value.shape:
            before = torch.empty_like(value, device="cpu", pin_memory=value.is_cuda)
        return before.copy_(value.detach(), non_blocking=True)
    # Containers, item by item
    if isinstance(value, dict):
        old = before if isinstance(before, dict) else {}
        return {key: on_host(item, old.get(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        same = isinstance(before, list | tuple) and len(before) == len(value)
        olds = before if same else [None] * len(value)
        return type(value)(on_host(item, old) for item, old in zip(value, olds, strict=True))
    return value


class Writer:
    """Writes checkpoints in a thread, from a copy, so that training goes on meanwhile.

    One write at most is under way and a save waits for the one before: every save is of a state
    that was asked for (a milestone, a stop signal), so none may be left out, and a second copy of
    the state in memory would buy nothing while the disk is the slower side.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[None] | None = None
        self._host: dict[str, Any] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Let the last save end; after another error its own is not raised."""
        with suppress(Exception) if kind else nullcontext():
            self.wait()

    def save(self, step: int, state: dict[str, Any], milestone: bool = False) -> None:
        """Copy `state` and have it written. Raises UserError if the save before failed."""
        self.wait()
        self._host = on_host(state, self._host)
        if torch.cuda.is_initialized():
            torch.cuda.current_stream().synchronize()
        self._pending = self._thread.submit(
            save, self.folder, step, self._host, self.keep, milestone
        )

    def wait(self) -> None:
        """Return when the last save is on the disk; raises UserError if it failed."""
        pending, self._pending = self._pending, None
        if pending:
            pending.result()


def remove_abandoned(folder: Path) -> None:
    """Delete temporary files that a killed trainer has left there or in a folder below.

    Only under the folder's lock.
    """
    for path in folder.rglob(".*.tmp"):
        path.unlink()


def at_step(folder: Path, step: int) -> Path:
    """The checkpoint of a step; raises UserError if it is gone."""
    for path in checkpoints(folder):
        if step_of(path) == step:
            return path
    raise UserError(f"the checkpoint of step {step} in {folder} is gone: start the command again")


def load(path: Path) -> dict[str, Any]:
    """A checkpoint, memory-mapped; raises some exception if it is cut short."""
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return state


def load_checked(path: Path) -> dict[str, Any]:
    """`load` after every checksum was compared: the whole file is read for it."""
    with zipfile.ZipFile(path) as archive:
        if damaged := archive.testzip():
            raise zipfile.BadZipFile(f"{damaged} has another checksum")
    return load(path)


def load_newest(folder: Path, last_step: float = math.inf) -> dict[str, Any] | None:
    """The newest readable checkpoint up to `last_step`; damaged ones are named and skipped.

    Removes what a killed trainer left half-written: call it under the folder's lock.
    """
    # Newest first
    remove_abandoned(folder)
    for path in reversed(checkpoints(folder)):
        if step_of(path) > last_step:
            continue
        try:
            return load_checked(path)
        except Exception as error:  # any damage shows as some exception of the unpickler or zip
            print(f"checkpoint {path} is damaged ({type(error).__name__}): skipped", flush=True)
    return None
