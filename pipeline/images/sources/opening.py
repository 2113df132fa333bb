"""The image set that the configuration names, opened: found, checked, ready to be read."""

import os
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

from pipeline.base.errors import UserError
from pipeline.config import paths
from pipeline.config.image_sets import MADE_SOURCES
from pipeline.config.schema import Config
from pipeline.images import shapes
from pipeline.images.sources import edm, find, listing, tars
from pipeline.images.sources.base import Source
from pipeline.images.sources.packagings import Location


def open_source(config: Config, environment: Mapping[str, str] = os.environ) -> Source:
    """The image set that data.source and data.layout name; shapes are drawn first if missing.

    Raises UserError if the set is missing, lies there twice, cannot be read, or is not what
    its layout promises.
    """
    if config.data.source in MADE_SOURCES:
        return tars.open_tar_of_tars(made_tar(config, environment))
    root = paths.image_root(config, environment)
    data = config.data
    source = open_at(find.choose(root, data.source, data.layout, data.resolution))
    check_made(source, config)
    return source


def open_at(location: Location) -> Source:
    """The image set at a location, with the listing of its files; raises UserError likewise."""
    try:
        files = listing.list_files(location)
        module = import_module(f"pipeline.images.sources.{location.packaging.module}")
        source: Source = module.open_at(location)
    except OSError as error:
        raise UserError(
            f"cannot list the images of {location.paths[0]} ({error.strerror}: {error.filename}): "
            "make them readable"
        ) from error
    source.listing = files
    return source


def has_classes(location: Location) -> bool:
    """Whether the images at a location have classes, if that can be told without listing them.

    Raises UserError if their labels cannot be read.
    """
    if location.layout != "edm":
        return location.layout != "flat"
    return edm.has_labels(location.paths[0])


def made_tar(config: Config, environment: Mapping[str, str]) -> Path:
    """The tar of drawn shapes, beside the packs; drawn if it is missing."""
    name = config.data.source
    place = paths.pack_folder(config, environment).parent.parent / name / "ILSVRC2012_img_train.tar"
    if not place.is_file():
        shapes.make_tar(place, MADE_SOURCES[name])
    return place


def check_made(source: Source, config: Config) -> None:
    """Raise UserError if the pixels were made by another recipe than the configuration's."""
    expected = (config.data.resolution, config.data.recipe)
    if source.made not in (None, expected):
        assert source.made is not None
        resolution, recipe = source.made
        raise UserError(
            f"{source.place} holds images made at {resolution} px by the recipe {recipe}, not at "
            f"{expected[0]} px by {expected[1]}: set data.resolution={resolution} and "
            f"data.recipe={recipe}, or get the original images"
        )
