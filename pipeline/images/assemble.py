"""The end of the making: rows in the source's order -> a pack, moved into place.

Rows are sorted by (class, file), and images that were left out have none. If the source came in
that order already, its rows are the pack's. The manifest is written beside the rows before
anything moves, and moves last: a pack that has one is complete, and a run that was killed while
moving is brought to its end by the next.
"""

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pipeline.base.errors import UserError
from pipeline.base.files import atomic_stream, remove_spent
from pipeline.base.npy import load_npy, save_npy, sha256_npy, write_header
from pipeline.config.schema import Config
from pipeline.config.stages import stage_keys
from pipeline.data.pack import Hashes, LeftOut, Manifest, Sizes
from pipeline.images.checks import check_expected, check_ignored, check_left_out
from pipeline.images.decode import TRAITS, versions
from pipeline.images.resample import ORDER
from pipeline.images.sources.base import Source
from pipeline.images.spool import Spool

CHUNK = 4096  # rows copied at a time
SMALL = 256  # px; the short side of the usual copies of ImageNet


@dataclass
class Finished:
    """All images of a source, in its order, and their outcome."""

    # Each image
    classes: np.ndarray  # (N,) bytes: the class of each image
    files: np.ndarray  # (N,) bytes: its file name
    kept: np.ndarray  # (N,) bool: whether it has a row in the pack
    # Their outcome
    left_out: list[LeftOut] = field(default_factory=list)
    traits: Counter[str] = field(default_factory=Counter)
    sizes: Counter[str] = field(default_factory=Counter)


def assemble(spool: Spool, source: Source, config: Config) -> Manifest:
    """Put the rows of a full spool into the pack's order.

    Raises UserError if images or classes are missing, or too many are unreadable.
    """
    images = finished(spool)
    # images and classes
    check_unique(images, source.place)
    names = np.unique(images.classes)
    classes = [name.decode("utf-8", "surrogateescape") for name in names]
    check_expected(config, source.place, len(images.kept), len(classes))
    # rows and labels
    order = pack_order(images)
    labels = np.searchsorted(names, images.classes[order]).astype(np.int64)
    per_class = counts(classes, labels)
    check_left_out(config, source.place, images.left_out, per_class)
    check_ignored(config, source.place, source.ignored.num_images, source.ignored.images)
    # manifest
    return Manifest(
        source=config.data.source,
        resolution=config.data.resolution,
        recipe=config.data.recipe,
        num_images=len(labels),
        classes=classes,
        sha256=write_arrays(spool, order, labels),
        config=stage_keys(config, "downsample"),
        kind=source.kind,
        listing=source.listing,
        per_class=per_class,
        counts={trait: images.traits[trait] for trait in TRAITS},
        ignored=source.ignored.num,
        ignored_images=source.ignored.num_images,
        left_out=images.left_out,
        sizes=(sizes := sizes_of(images.sizes)),
        resized=seems_resized(source, sizes, len(labels)),
        order=ORDER,
        versions=versions(),
    )


def finished(spool: Spool) -> Finished:
    """The journal of a spool whose stretches are all finished."""
    # Outcome of each stretch
    classes, files, has_row = [], [], []
    left_out, traits, sizes = [], Counter[str](), Counter[str]()
    for stretch in spool.used:
        line = spool.line(stretch)
        pairs = [name.split("/", 1) for name in line.names]
        classes.append(np.array([encoded(name) for name, _ in pairs]))
        files.append(np.array([encoded(name) for _, name in pairs]))
        has_row.append(np.array([place not in line.problems for place in range(len(pairs))]))
        left_out += [LeftOut(name=line.names[p], reason=r) for p, r in line.problems.items()]
        traits.update(line.traits)
        sizes.update(line.sizes)
    # All stretches together
    names = np.concatenate(classes), np.concatenate(files)
    return Finished(*names, np.concatenate(has_row), left_out, traits, sizes)


def sizes_of(counts: Counter[str]) -> Sizes | None:
    """The extremes of image sizes, counted by <width>x<height>; None without any."""
    # Sizes by area
    sizes = {size: [int(side) for side in size.split("x")] for size in counts}
    by_area = sorted(sizes.values(), key=lambda size: (size[0] * size[1], size))
    if not by_area:
        return None

    # The most frequent
    frequent = max(sizes, key=lambda size: (counts[size], sizes[size]))
    return Sizes(
        smallest=by_area[0],
        largest=by_area[-1],
        most_frequent=sizes[frequent],
        share=counts[frequent] / counts.total(),
        short_side=max(map(min, by_area)),
    )


def seems_resized(source: Source, sizes: Sizes | None, num_images: int) -> bool:
    """Whether another program seems to have resized the images before.

    They are all of one size, or at most SMALL px on their short sides, as originals of photographs
    are not. False for sets that this project draws or that are known to be small.
    """
    known = source.listing is None or source.made is not None or source.kind == "cifar"
    if known or sizes is None or num_images < 2:
        return False
    assert sizes.short_side is not None
    return sizes.share == 1 or sizes.short_side <= SMALL


def encoded(name: str) -> bytes:
    """A file name as bytes; names that are not UTF-8 keep theirs."""
    return name.encode("utf-8", "surrogateescape")


def pack_order(images: Finished) -> np.ndarray:
    """Places in the source of the pack's rows (int64): sorted by (class, file), then place."""
    order = np.lexsort((images.files, images.classes))  # stable
    return order[images.kept[order]]


def check_unique(images: Finished, where: Path) -> None:
    """Raise UserError if two images have the same class and name."""
    # neighbours after sorting
    order = np.lexsort((images.files, images.classes))
    same = (images.classes[order][1:] == images.classes[order][:-1]) & (
        images.files[order][1:] == images.files[order][:-1]
    )
    if same.any():
        first = order[int(np.argmax(same))]
        parts = (images.classes[first], images.files[first])
        name = "/".join(part.decode("utf-8", "surrogateescape") for part in parts)
        raise UserError(f"{where} holds {name} twice: use the original image set")


def write_arrays(spool: Spool, order: np.ndarray, labels: np.ndarray) -> Hashes:
    """Write the sorted rows if they differ from the spool's, and the labels; their sha256."""
    # Sorted rows, if needed
    ready = spool.folder / "images.npy"
    in_order = np.array_equal(order, np.arange(len(labels)))
    if not in_order or len(order) != spool_rows(spool):
        copy_rows(spool.rows_file, ready, order)
    # Labels and hashes
    save_npy(spool.folder / "labels.npy", labels)
    return Hashes(
        images=sha256_npy(ready if ready.exists() else spool.rows_file),
        labels=hashlib.sha256(labels.data).hexdigest(),
    )


def spool_rows(spool: Spool) -> int:
    """Number of rows in the completed spool."""
    return int(load_npy(spool.rows_file).shape[0])


def copy_rows(source: Path, target: Path, order: np.ndarray) -> None:
    """Write the rows `order` of one .npy as another, a chunk at a time."""
    rows = load_npy(source)
    with atomic_stream(target) as stream:
        write_header(stream, (len(order), *rows.shape[1:]))
        for start in range(0, len(order), CHUNK):
            stream.write(np.ascontiguousarray(rows[order[start : start + CHUNK]]).data)


def move_into_place(making: Path, pack: Path) -> None:
    """Move a pack whose manifest is written from `making` into `pack`, the manifest last.

    May be called again after any kind of end, and then does the rest. The pack stays as it is if
    another process has moved it.
    """
    # An interrupted move goes on
    if (making / "manifest.json").exists():
        (pack / "manifest.json").unlink(missing_ok=True)
        for name, target in (
            ("labels.npy", "labels.npy"),
            ("rows.npy", "images.npy"),
            ("images.npy", "images.npy"),  # the sorted rows, if they had to be sorted
            ("manifest.json", "manifest.json"),
        ):
            if (making / name).exists():
                (making / name).replace(pack / target)
    remove_spent(making)


def counts(classes: list[str], labels: np.ndarray) -> dict[str, int]:
    """Number of images of each class by its name."""
    numbers: list[int] = np.bincount(labels, minlength=len(classes)).tolist()
    return dict(zip(classes, numbers, strict=True))
