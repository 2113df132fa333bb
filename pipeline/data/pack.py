"""A pack on disk: its arrays, and the records that describe it.

DataAbout   the data that weights were trained on, as they and their samples say it
Record      results/data/<data>.json, on which all rules after `downsample` depend
Manifest    manifest.json in the pack's folder: the record and how the pack was made
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from pipeline.base.errors import UserError
from pipeline.base.json_objects import JsonObject
from pipeline.base.npy import load_npy, sha256_npy

HASHED = 10**9  # bytes: up to this size a pack's images are hashed at each start
UNEVEN = 0.05  # imbalance from which balanced samples are worth a note; ImageNet's is 0.013


def imbalance(per_class: Iterable[int]) -> float:
    """Share in [0,1) of the images that would have to change class for equal numbers per class."""
    counts = np.fromiter(per_class, np.float64)
    return float(np.maximum(counts - counts.mean(), 0).sum() / counts.sum())


def balance_note(per_class: Iterable[int]) -> str:
    """A sentence about balanced samples if the pack has uneven numbers of images; empty if not."""
    share = imbalance(per_class)
    if share < UNEVEN:
        return ""
    return (
        f"samples are balanced over the classes, but {share:.0%} of the pack's images would have "
        "to change class to be so, which distances count: sample.classes=histogram draws classes "
        "as the pack has them"
    )


def chosen_note(num_chosen: int, num_classes: int) -> str:
    """A sentence about samples of some classes if there are more; empty if not.

    `num_classes` 0: it is not known how many the reference has.
    """
    if num_chosen == num_classes:
        return ""
    others = f"all {num_classes:,}" if num_classes else "others too, unless it was made for them"
    return (
        f"samples are of {num_chosen:,} chosen classes (sample.classes), the reference is of "
        f"{others}: distances, precision and recall count what is missing, so compare them only "
        "with scores of the same classes"
    )


class Hashes(JsonObject):
    """Hex sha256 of the arrays of a pack, without their .npy headers."""

    images: str
    labels: str
    duals: str | None = None  # of a training with train.coupling=semidiscrete: see data/duals.py


class DataAbout(JsonObject):
    """The data that weights were trained on, as they and their samples say it."""

    KIND: ClassVar[str] = "a description of training data"
    REMEDY: ClassVar[str] = "make the weights again"

    # Size and recipe
    source: str  # data.source; "unknown" for imported weights whose pack was not given
    resolution: int  # px, both axes
    recipe: str
    # Classes
    classes: list[str]  # names in label order
    per_class: dict[str, int] | None = None  # number of images; None in old files
    # Identity
    sha256: Hashes | None  # None: imported weights whose pack was not given

    @property
    def name(self) -> str:
        """`<source>_<res>-<recipe>`."""
        return f"{self.source}_{self.resolution}-{self.recipe}"


class Record(DataAbout):
    """The record of a pack: everything that the pixels and labels of a run depend on."""

    KIND: ClassVar[str] = "a pack's record"
    REMEDY: ClassVar[str] = "give results/data/<data>.json, or delete it and run `make data`"

    num_images: int
    sha256: Hashes


class LeftOut(JsonObject):
    """An image that has no row in the pack."""

    name: str  # <class>/<file>
    reason: str


class Sizes(JsonObject):
    """The sizes of an image set's images before they were made small: [width, height], px."""

    smallest: list[int]  # by area
    largest: list[int]
    most_frequent: list[int]
    share: float  # of the images that have it
    short_side: int | None = None  # the longest of all images' short sides; None in old files


class Listing(JsonObject):
    """A cheap listing of an image set's files, which tells whether a pack is still of that set."""

    kind: str  # packaging
    num_files: int  # image files, or shards and archives
    num_bytes: int  # their sizes in all
    names: str  # hex sha256 of their sorted names


class Manifest(Record):
    """The manifest of a pack: its record, and how it was made."""

    KIND: ClassVar[str] = "a manifest"
    REMEDY: ClassVar[str] = "delete it and run `make data`"

    # Images per class
    per_class: dict[str, int]
    # How it was made
    config: dict[str, object]  # the keys that `downsample` read
    kind: str  # packaging of the image set
    listing: Listing | None = None  # of the image set's files; None in old files
    counts: dict[str, int]  # number of images by what was unusual about their files
    # Unusual files
    ignored: int  # files of the image set that are not images by their names
    ignored_images: int = 0  # of them, those that hold images all the same; 0 in old files too
    left_out: list[LeftOut]
    # Sizes and versions
    sizes: Sizes | None = None  # None in old files
    resized: bool = False  # seems a copy, not the originals: small images, or all of one size
    order: str | None = None  # of the axes that are filtered; None: columns first in tall images
    versions: dict[str, str]  # of everything that may change a pixel


@dataclass(frozen=True)
class Pack:
    """Images uint8 (N,H,W,3) and labels int64 (N,), memory-mapped, and their record.

    `duals` (N,) float64 of a training with train.coupling=semidiscrete: see data/duals.py.
    """

    images: np.ndarray
    labels: np.ndarray
    record: Record
    duals: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.images)


def open_pack(folder: Path, record: Record) -> Pack:
    """The pack in `folder`, checked against its record.

    Raises UserError if it is missing, is another pack, or its labels do not match the classes.
    """
    # The record first
    if read_record(folder).sha256 != record.sha256:
        raise UserError(
            f"pack {folder} holds other images than its record in results/data says: "
            "run `make data`"
        )
    # arrays as the record says
    images, labels = load_npy(folder / "images.npy"), load_npy(folder / "labels.npy")
    size, num = record.resolution, record.num_images
    if images.shape != (num, size, size, 3) or images.dtype != np.uint8 or labels.shape != (num,):
        raise UserError(f"pack {folder} is damaged (not as its record says): run `make data`")
    check_labels(labels, len(record.classes), folder)
    return Pack(images, labels, record)


def read_record(folder: Path) -> Record:
    """The record that the pack in `folder` carries in its manifest; raises UserError without."""
    manifest = folder / "manifest.json"
    if not manifest.exists():
        state = f"{folder} holds no pack" if folder.is_dir() else f"pack {folder} is missing"
        raise UserError(
            f"{state}: run `make data`, move IMAGENET_DIR with it, or give data.path=PACK"
        )
    return Record.read(manifest)


def check_labels(labels: np.ndarray, num_classes: int, where: Path) -> None:
    """Raise UserError unless all labels lie in 0 … num_classes-1."""
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        raise UserError(
            f"labels {low}…{high} in {where} do not match its {num_classes} classes: "
            "run `make data` to build the pack again"
        )


def check_arrays(pack: Pack, folder: Path) -> None:
    """Raise UserError if the arrays of the pack in `folder` are not those of its record.

    That the files are whole, and that the manifest's hash is the record's, was found when the pack
    was opened. The arrays themselves are hashed here, except images of more than HASHED bytes:
    reading the 15 GB of ImageNet-64 at each start would take minutes, so there a byte that
    changed on the disk goes unnoticed.
    """
    for name, array in (("images", pack.images), ("labels", pack.labels)):
        hashed = array.nbytes <= HASHED
        if hashed and sha256_npy(folder / f"{name}.npy") != getattr(pack.record.sha256, name):
            raise UserError(
                f"{folder / name}.npy has changed since it was written (its sha256 is not the "
                "record's): run `make data` to build the pack again"
            )
