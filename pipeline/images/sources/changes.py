"""Whether the image set at hand is the one that a pack was made of."""

import os
from collections.abc import Mapping

from pipeline.base.errors import UserError
from pipeline.config import paths
from pipeline.config.image_sets import MADE_SOURCES
from pipeline.config.schema import Config
from pipeline.data.pack import Listing, Manifest
from pipeline.images.sources.find import image_sets
from pipeline.images.sources.listing import list_files
from pipeline.images.sources.opening import open_at
from pipeline.images.sources.packagings import Location


def location_at_hand(
    config: Config, kind: str, environment: Mapping[str, str] = os.environ
) -> Location | None:
    """Where the configuration's image set lies, packaged as `kind` if it lies there twice.

    None if it does not lie there, or is drawn by this project.
    """
    data = config.data
    try:
        root = None if data.source in MADE_SOURCES else paths.image_root(config, environment)
    except UserError:
        return None
    sets = image_sets(root, data.resolution, data.layout) if root else []
    sets = [s for s in sets if s.source == data.source and data.layout in ("auto", s.layout)]
    return next((s for s in sets if s.layout == kind), sets[0] if sets else None)


def set_changes(location: Location, manifest: Manifest) -> list[str]:
    """The differences, in words, of the set at a location from the one that a pack was made of.

    Without a listing of the same packaging, as in older manifests, classes and the number of images
    are compared. Prints a note if not even that is possible.
    """
    if manifest.listing and manifest.listing.kind == location.layout:
        return listing_changes(manifest.listing, list_files(location))
    try:
        source = open_at(location)
    except UserError as error:
        print(f"note: the pack was not compared with its image set: {error}", flush=True)
        return []
    if source.classes is None or source.num_images is None:
        print(
            f"note: the pack was not compared with {location.paths[0]}, since its manifest has "
            f"no listing of a {location.layout}",
            flush=True,
        )
        return []
    num_images = manifest.num_images + len(manifest.left_out)
    changes = [] if source.classes == manifest.classes else ["other classes"]
    return changes + number_changes("images", source.num_images, num_images)


def listing_changes(before: Listing, now: Listing) -> list[str]:
    """The differences between two listings of the same packaging, in words."""
    changes = number_changes("files", now.num_files, before.num_files)
    changes += number_changes("bytes", now.num_bytes, before.num_bytes)
    return changes + (["other file names"] if now.names != before.names else [])


def number_changes(unit: str, now: int, before: int) -> list[str]:
    """`["21 files instead of 20"]`, or nothing if the numbers are equal."""
    return [f"{now:,} {unit} instead of {before:,}"] if now != before else []
