"""Rows of a pack in the making: where they lie in their file, and what tells a changed one."""

import hashlib
import os
from pathlib import Path

import numpy as np

from pipeline.base.files import disk_error
from pipeline.base.npy import IMAGES_HEADER_BYTES


def write_rows(path: Path, first: int, pixels: np.ndarray) -> bytes:
    """Write pixels (n, resolution, resolution, 3) uint8 as rows `first`, `first` + 1, … of a file.

    Several processes may write rows of one file at the same time. Returns the rows' digests, and
    leaves fsync to the caller. Raises UserError where the disk is full.
    """
    data = pixels.reshape(-1).data
    offset = IMAGES_HEADER_BYTES + first * pixels[0].nbytes
    try:
        file = os.open(path, os.O_WRONLY)
        try:
            while data:
                written = os.pwrite(file, data, offset)
                data, offset = data[written:], offset + written
        finally:
            os.close(file)
    except OSError as error:
        raise disk_error(error, path) from error
    return b"".join(digest(row.data) for row in pixels)


def digest(row: bytes | memoryview) -> bytes:
    """What a row's bytes are known by: their sha256."""
    return hashlib.sha256(row).digest()
