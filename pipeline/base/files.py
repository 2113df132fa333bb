"""Files that are never seen half-written: temporary name, fsync, rename; and their hashes."""

import errno
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from pipeline.base.errors import UserError


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; on success fsync it and rename it to `path`.

    The file has the mode of the one that it replaces, or else that of the umask, whatever wrote
    it. On any failure the temporary file is removed and `path` is left as it was.
    Raises UserError if the disk is full.
    """
    # Hidden beside it
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")

    # Complete before its name
    try:
        temporary.touch()
        mode = stat.S_IMODE((path if path.exists() else temporary).stat().st_mode)
        yield temporary
        temporary.chmod(mode)  # safetensors writes for the owner alone
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        raise disk_error(error, path) from error
    finally:
        temporary.unlink(missing_ok=True)


def disk_error(error: OSError, path: Path) -> Exception:
    """The UserError for a full disk or quota; any other OSError comes back as it is."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return error
    return UserError(
        f"no space left on the disk of {path.parent} while writing {path.name}: "
        "free some and run the same command again"
    )


@contextmanager
def atomic_stream(path: Path) -> Iterator[IO[bytes]]:
    """Like `atomic`, with the temporary file opened for writing bytes."""
    with atomic(path) as temporary, temporary.open("wb") as stream:
        yield stream


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder beside `path`; on success rename it to `path`, else remove it.

    Raises UserError if the disk is full.
    """
    # Hidden beside it
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")

    # Complete before its name
    try:
        shutil.rmtree(temporary, ignore_errors=True)  # of a killed process with the same number
        temporary.mkdir(parents=True)
        yield temporary
        os.sync()  # once, instead of an fsync of each file
        temporary.rename(path)
    except OSError as error:
        raise disk_error(error, path) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_spent(folder: Path) -> None:
    """Remove a folder that nothing needs any more, as far as that is possible.

    On NFS a file that a process has open, such as a lock or a memory map, stays under a hidden name
    until it is closed, so that its folder cannot go; that is not a reason to fail finished work.
    """
    shutil.rmtree(folder, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON with sorted keys: equal values give equal bytes."""
    with atomic_stream(path) as stream:
        stream.write((json.dumps(value, indent=2, sort_keys=True) + "\n").encode())


def read_json(path: Path) -> Any:
    """The JSON in `path`; raises UserError if it is missing, damaged or a folder."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: run the step that makes it") from error
    except OSError as error:
        reason = "is a folder" if path.is_dir() else f"cannot be read ({error.strerror})"
        raise UserError(f"{path} {reason}: give a file of JSON") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged ({error}): delete it and run again") from error


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """Hex sha256 of a value's canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


@contextmanager
def user_error_if_unwritable(path: Path, error_type: type[Exception]) -> Iterator[None]:
    """Turn what a library raises when `path` cannot be written into a UserError.

    `error_type`: RuntimeError for torch.save, SafetensorError for safetensors.
    """
    try:
        yield
    except error_type as error:
        raise UserError(
            f"{path} could not be written ({str(error).splitlines()[0]}): is there space on the "
            f"disk of {path.parent}? The same command resumes from the checkpoint before"
        ) from error
