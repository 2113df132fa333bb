"""CIFAR-10's training set (Krizhevsky 2009): cifar-10-python.tar.gz, read in place or unpacked.

Five pickled dicts data_batch_1 … data_batch_5, written by Python 2:

    data       uint8 (10000, 3072): a row is an image, its red plane first, then green, then blue
    labels     numbers 0 … 9, places in the label_names of batches.meta
    filenames  one for each image

The test batch is left alone. Opening reads all of it, 150 MB, and keeps it.
"""

import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from pipeline.base.errors import UserError
from pipeline.base.safe_pickle import load_arrays
from pipeline.images.sources import tars
from pipeline.images.sources.base import Source, Stretch, check_classes
from pipeline.images.sources.batches import check_labels, cut
from pipeline.images.sources.packagings import Location

# Names of the files
FOLDER = "cifar-10-batches-py"
BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
META = "batches.meta"
# Sizes
RESOLUTION = 32  # px
STRETCH = 1000  # images; 3 MB
LARGEST = 200 * 2**20  # bytes; the original's members have 31 MB


def open_at(location: Location) -> Source:
    """The image set at a location."""
    return open_cifar(location.paths[0])


def open_cifar(place: Path) -> Source:
    """The training set in the archive or folder `place`, named <label name>/<filename>.

    Raises UserError if a batch is missing or damaged, or an archive holds what it should not.
    """
    members = read_folder(place) if place.is_dir() else read_tar(place)
    # all six files
    missing = [name for name in (*BATCHES, META) if name not in members]
    if missing:
        raise UserError(
            f"{place} lacks {', '.join(missing)}: get the original cifar-10-python.tar.gz"
        )
    # names and pixels of every batch
    classes = label_names(place, members[META])
    rows = [check_batch(place, name, members[name], classes) for name in BATCHES]
    names = distinct([name for _, part in rows for name in part])
    counts = Counter(name.partition("/")[0] for name in names)

    def stretches() -> Iterator[Stretch]:
        start = 0
        for number, (data, part) in enumerate(rows, start=1):
            batch_names = names[start : start + len(part)]
            yield from cut(number, batch_names, data, RESOLUTION, STRETCH)
            start += len(part)

    ordered = check_classes(place, {name: counts[name] for name in classes})
    return Source("cifar", place, ordered, len(names), stretches, False)


def distinct(names: list[str]) -> list[str]:
    """`names`, with ~2, ~3, … behind a name that comes for the second, third, … time."""
    counts: Counter[str] = Counter()
    result = []
    for name in names:
        counts[name] += 1
        result.append(name if counts[name] == 1 else f"{name}~{counts[name]}")
    return result


# --- reading -----------------------------------------------------------------------------------


def read_folder(place: Path) -> dict[str, object]:
    """The unpickled files of the folder, by name, without the missing ones."""
    members = {}
    for name in (*BATCHES, META):
        if (place / name).is_file():
            with (place / name).open("rb") as stream:
                members[name] = load_arrays(stream, str(place / name))
    return members


def read_tar(place: Path) -> dict[str, object]:
    """The unpickled members of the archive, by name without the folder.

    Raises UserError if it is damaged, or a member is a link, too large or has a strange path.
    """
    # Only known members
    contents: dict[str, object] = {}
    with tars.reading(str(place), "tar.gz"), tarfile.open(place, "r:gz") as archive:
        for member in tars.members(archive, str(place)):
            if member.size > LARGEST:
                raise UserError(
                    f"{place} holds the member {member.name!r}, which is larger than all of "
                    "CIFAR-10: get the original archive"
                )
            path = PurePosixPath(member.name)
            if str(path.parent) != FOLDER or path.name not in (*BATCHES, META):
                continue
            if path.name in contents:
                raise UserError(f"{place} holds {path} twice: get the original archive")
            stream = archive.extractfile(member)
            if stream:
                contents[path.name] = load_arrays(stream, f"{place}: {path}")
    return contents


# --- checks ------------------------------------------------------------------------------------


def label_names(place: Path, meta: Any) -> list[str]:
    """The class names in label order; raises UserError if they are not different plain names."""
    names = texts(meta.get("label_names")) if isinstance(meta, dict) else []
    if not names or len(set(names)) != len(names) or not all(map(is_plain, names)):
        raise UserError(f"{place}: {META} has no proper label_names: get the original archive")
    return names


def check_batch(
    place: Path, batch: str, members: Any, classes: list[str]
) -> tuple[np.ndarray, list[str]]:
    """Planar rows uint8 (n, 3072) and names <label name>/<filename> of an unpickled batch.

    Raises UserError if its members are not what they should be.
    """
    where = f"{place}: {batch}"
    # Pixels as expected
    members = members if isinstance(members, dict) else {}
    data = members.get("data")
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape[1:] != (3072,):
        raise UserError(f"{where} has no data uint8 (n, 3072): get the original archive")

    # Labels and names
    labels = check_labels(where, members.get("labels"), len(data), range(len(classes)))
    files = texts(members.get("filenames"))
    if len(files) != len(data) or not all(map(is_plain, files)):
        raise UserError(
            f"{where} does not have one plain name in filenames for each of its {len(data)} "
            "images: get the original archive"
        )
    return data, [f"{classes[label]}/{file}" for label, file in zip(labels, files, strict=True)]


def texts(values: Any) -> list[str]:
    """A list of str or bytes as str; empty if it is anything else."""
    if not isinstance(values, list) or not all(isinstance(v, str | bytes) for v in values):
        return []
    return [value if isinstance(value, str) else value.decode("latin1") for value in values]


def is_plain(name: str) -> bool:
    """Whether a name is a single part of a path."""
    return name not in ("", ".", "..") and "/" not in name
