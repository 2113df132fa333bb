"""A cheap listing of an image set's files: names and sizes, no bytes of them."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from pipeline.data.pack import Listing
from pipeline.images.formats import is_hidden
from pipeline.images.sources.base import ABOUT_EDM
from pipeline.images.sources.packagings import Location
from pipeline.images.walk import walk


def list_files(location: Location) -> Listing:
    """The listing of the set at a location; equal for a copy elsewhere, whatever its times."""
    names, num_files, num_bytes = hashlib.sha256(), 0, 0
    for name, file in files_of(location):
        names.update(name.encode("utf-8", "surrogateescape") + b"\0")
        num_files += 1
        num_bytes += size(file)
    return Listing(
        kind=location.layout, num_files=num_files, num_bytes=num_bytes, names=names.hexdigest()
    )


def files_of(location: Location) -> Iterator[tuple[str, Path]]:
    """Name in the set and path of each file, sorted: images of a tree, else shards or archives."""
    for path in location.paths:
        if not path.is_dir():
            yield path.name, path
            continue
        images, others = walk(path)
        visible = [name for name in others if not is_hidden(name)]
        for name in visible if location.layout == "cifar" else images:
            yield name, path / name
        if location.layout == "edm" and ABOUT_EDM in visible:
            yield ABOUT_EDM, path / ABOUT_EDM


def size(file: str | Path) -> int:
    """Bytes of a file; 0 of a dead link, which counts as an unreadable image."""
    try:
        return os.stat(file).st_size  # noqa: PTH116, Path takes longer
    except OSError:
        return 0
