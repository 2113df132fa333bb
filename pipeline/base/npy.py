"""Arrays in .npy files: their headers, reading and writing, and the hash of their content."""

import hashlib
import zipfile
import zlib
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from pipeline.base.errors import UserError, without_right
from pipeline.base.files import atomic_stream

IMAGES_HEADER_BYTES = 128  # of the header that `write_header` writes, for any number of images

# What reading a damaged .npz may raise; RuntimeError if a changed bit says that a member is
# encrypted or packed in another way
NPZ_ERRORS = (
    *(ValueError, KeyError, OSError, EOFError, TypeError, RuntimeError),
    *(zipfile.BadZipFile, zlib.error),
)

_READERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


class Header(NamedTuple):
    """The header of a .npy: shape, order in memory (Fortran's or C's) and type of the array."""

    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype


def read_header(stream: IO[bytes]) -> Header:
    """Read the header of a .npy, which leaves `stream` at the first byte of the array.

    Raises ValueError if the stream does not hold a .npy, or one of a version above 2.0.
    """
    version = np.lib.format.read_magic(stream)
    if version not in _READERS:
        raise ValueError(f"unknown version {version} of .npy")
    return Header(*_READERS[version](stream))


def write_header(stream: IO[bytes], shape: tuple[int, ...], descr: str = "|u1") -> None:
    """Write the header of a .npy in C order, by default of uint8, whose bytes the caller streams.

    `descr`: the type of its numbers, as numpy's `dtype.str` has it.
    """
    header = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, header)


def save_npy(path: Path, array: np.ndarray) -> None:
    """Save one array as .npy, atomically."""
    with atomic_stream(path) as stream:
        np.save(stream, array, allow_pickle=False)


def load_npy(path: Path) -> np.ndarray:
    """Memory-map one .npy read-only; raises UserError if it is missing, private or damaged."""
    # Mapped, not read
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: run the step that makes it") from error
    except PermissionError as error:
        raise UserError(without_right(error)) from error
    except (ValueError, EOFError, OSError) as error:
        raise UserError(
            f"{path} is not a readable .npy ({error}): delete it and run the step again"
        ) from error


def sha256_npy(path: Path) -> str:
    """Hex sha256 of the array in a .npy, without its header."""
    with path.open("rb") as stream:
        read_header(stream)
        return hashlib.file_digest(stream, "sha256").hexdigest()
