"""The official downsampled ImageNet (Chrabaszcz et al. 2017): train_data_batch_1 … _10.

Each file is a pickled dict, or an .npz with the same members:

    data    uint8 (n, 3·res²): a row is an image, its red plane first, then green, then blue
    labels  n numbers 1 … 1000, counted as in the ImageNet devkit, not by sorted synsets
    mean    of all images of the set; not read here

The images carry no file names, and were resized by the authors with Pillow's box filter, both
axes to `res` without a crop. Opening reads the labels once: alone from an .npz, with everything
else from a pickle. One file at a time is in memory (1.6 GB at 64 px).
"""

import math
import re
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.base.errors import UserError
from pipeline.base.npy import read_header
from pipeline.base.safe_pickle import load_arrays
from pipeline.images.sources import synsets
from pipeline.images.sources.base import Item, Source, Stretch
from pipeline.images.sources.packagings import Location

NAME = re.compile(r"train_data_batch_([1-9]\d{0,2})(\.npz)?")
LABELS = range(1, 1001)
STRETCH = 512  # images; 6 MB at 64 px


def open_at(location: Location) -> Source:
    """The image set at a location."""
    return open_batches(location.root, location.paths, int(location.resolution))


def open_batches(place: Path, files: list[Path], resolution: int) -> Source:
    """The image set in `files`, named <synset>/batch<number>_<row>; `place` is for messages.

    Raises UserError if a batch is missing, there twice, damaged, or of another resolution.
    """
    # Labels of every batch
    numbered = number_files(place, files)
    order = synsets.devkit_order()
    counts: Counter[str] = Counter()
    for file in numbered.values():
        counts.update(order[label - 1] for label in read_labels(file, resolution))
    if not counts:
        raise UserError(f"the batches in {place} hold no images: get the original files")

    def stretches() -> Iterator[Stretch]:
        for number, file in numbered.items():
            yield from read_stretches(number, file, resolution, order)

    # Resized before
    recipe = (resolution, "box")
    return Source("batches", place, sorted(counts), counts.total(), stretches, False, made=recipe)


def number_files(place: Path, files: list[Path]) -> dict[int, Path]:
    """The files by their numbers 1, 2, …; raises UserError for gaps, doubles and other names."""
    # numbers from the names
    by_number: dict[int, Path] = {}
    for file in sorted(files):
        match = NAME.fullmatch(file.name)
        if not match:
            raise UserError(
                f"{file} is neither train_data_batch_<number> nor train_data_batch_<number>.npz: "
                "move it away, or unpack it if it is an archive of batches"
            )
        if int(match[1]) in by_number:
            raise UserError(
                f"{by_number[int(match[1])]} and {file} are the same batch: move one of them away"
            )
        by_number[int(match[1])] = file
    # gaps
    missing = sorted(set(range(1, max(by_number, default=1) + 1)) - set(by_number))
    if missing:
        names = ", ".join(f"train_data_batch_{number}" for number in missing)
        raise UserError(f"batches are missing in {place} ({names}): get them too")
    return dict(sorted(by_number.items()))


def read_stretches(number: int, file: Path, resolution: int, order: list[str]) -> Iterator[Stretch]:
    """The images of one file; `order` has the synset of label l at l-1."""
    rows, labels = read_batch(file, resolution)
    names = [f"{order[label - 1]}/batch{number:02d}_{row:06d}" for row, label in enumerate(labels)]
    yield from cut(number, names, rows, resolution, STRETCH)


def cut(
    number: int, names: list[str], rows: np.ndarray, resolution: int, most: int
) -> Iterator[Stretch]:
    """Stretches of at most `most` images (res,res,3) out of planar rows uint8 (n, 3·res²).

    Each stretch has separate memory, so that keeping one does not keep the whole file.
    """
    for start in range(0, len(names), most):
        planes = rows[start : start + most].reshape(-1, 3, resolution, resolution)
        images = np.ascontiguousarray(planes.transpose(0, 2, 3, 1))
        items = [Item(name, image) for name, image in zip(names[start:], images, strict=False)]
        yield Stretch(f"batch{number:02d}_{start:06d}", items)


# --- files -------------------------------------------------------------------------------------


def read_labels(file: Path, resolution: int) -> list[int]:
    """The labels 1 … 1000 of a file, and the checks of `read_batch`."""
    if file.suffix != ".npz":
        return read_batch(file, resolution)[1]
    shape, dtype = npz_header(file, "data")
    check_rows(file, shape, dtype, resolution)
    return check_labels(str(file), npz_member(file, "labels"), shape[0], LABELS)


def read_batch(file: Path, resolution: int) -> tuple[np.ndarray, list[int]]:
    """The planar rows uint8 (n, 3·res²) and the labels 1 … 1000 of a file.

    Raises UserError if the file is damaged, or its members are not what they should be.
    """
    if file.suffix == ".npz":
        data, labels = npz_member(file, "data"), npz_member(file, "labels")
    else:
        data, labels = read_pickle(file)
    check_rows(file, data.shape, data.dtype, resolution)
    return data, check_labels(str(file), labels, len(data), LABELS)


def read_pickle(file: Path) -> tuple[np.ndarray, Any]:
    """The members data and labels of a pickled batch; raises UserError if they are not there."""
    # Only plain arrays
    with file.open("rb") as stream:
        batch = load_arrays(stream, str(file))

    # Members that must exist
    try:
        data, labels = batch["data"], batch["labels"]
    except (TypeError, KeyError, IndexError) as error:
        raise UserError(f"{file} has no data and labels: get the original file") from error
    if not isinstance(data, np.ndarray):
        raise UserError(f"{file} has no array as its data: get the original file")
    return data, labels


def npz_member(file: Path, name: str) -> np.ndarray:
    """One array of an .npz; raises UserError if it cannot be read."""
    try:
        with zipfile.ZipFile(file) as archive, archive.open(f"{name}.npy") as stream:
            return np.lib.format.read_array(stream, allow_pickle=False)
    except Exception as error:
        raise damaged_npz(file, error) from error


def npz_header(file: Path, name: str) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype of one array of an .npz; raises UserError if they cannot be read."""
    try:
        with zipfile.ZipFile(file) as archive, archive.open(f"{name}.npy") as stream:
            shape, _, dtype = read_header(stream)
            return shape, dtype
    except Exception as error:
        raise damaged_npz(file, error) from error


def damaged_npz(file: Path, error: Exception) -> Exception:
    """The UserError for whatever a damaged .npz raises; OSErrors come back as they are."""
    if isinstance(error, OSError):
        return error
    return UserError(
        f"{file} is damaged or not an .npz of a batch ({type(error).__name__}: {error}): "
        "get the original file"
    )


def check_rows(file: Path, shape: tuple[int, ...], dtype: np.dtype, resolution: int) -> None:
    """Raise UserError unless data of this shape and dtype are images at `resolution` px."""
    # Square images
    side = math.isqrt(shape[-1] // 3) if len(shape) == 2 else 0
    if dtype != np.uint8 or not side or shape[-1] != 3 * side**2:
        raise UserError(
            f"{file} holds data of shape {shape} and type {dtype}, not rows of square images in "
            "uint8: get the original file"
        )
    # Of the right size
    if side != resolution:
        raise UserError(
            f"{file} holds images of {side}x{side} px, not of {resolution} px: "
            f"set data.resolution={side}, or get the batches for {resolution} px"
        )


def check_labels(where: str, labels: Any, num_images: int, allowed: range) -> list[int]:
    """`labels`, a list or an array, as a list of int.

    Raises UserError if there is not one for each image, or one is not `allowed`.
    """
    # One for each image
    values = labels.tolist() if isinstance(labels, np.ndarray) else labels
    if not isinstance(values, list) or len(values) != num_images:
        raise UserError(
            f"{where} does not hold one label for each of its {num_images} images: "
            "get the original file"
        )
    # Each within range
    for value in values:
        if type(value) is not int or value not in allowed:
            raise UserError(
                f"{where} holds the label {value!r}, which is not one of "
                f"{allowed[0]} … {allowed[-1]}: get the original file"
            )
    return values
