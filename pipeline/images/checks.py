"""Checks of a pack: before it is made, and of one that exists."""

import hashlib
import os
import shutil
from contextlib import suppress
from pathlib import Path

from pipeline.base.errors import UserError
from pipeline.base.npy import load_npy
from pipeline.config.schema import Config
from pipeline.data.pack import LeftOut, Manifest
from pipeline.images.formats import IMAGE_SUFFIXES
from pipeline.images.resample import ORDER
from pipeline.images.sources.changes import location_at_hand, set_changes
from pipeline.images.walk import listed

NAMED = 20  # files that an error names
ARRAYS = ("batches", "cifar")  # kinds of image sets whose square pixels no order changes
OTHER_ORDER = (
    "downsample: note: it was made by an earlier version, which filtered the columns of tall "
    "images first, and is kept: a new pack would have different pixels there"
)
MAKE_AGAIN = "downsample: the pack in {} is damaged ({}): making it again"

# --- checks ------------------------------------------------------------------------------------


def check_expected(config: Config, where: Path, num_images: int, num_classes: int) -> None:
    """Raise UserError if the image set has another size than the configuration says."""
    # Counted against expected
    data = config.data
    counted = {"images": num_images, "classes": num_classes}
    expected = {"images": data.expected_images, "classes": data.expected_classes}
    for kind, num in counted.items():
        if expected[kind] not in (None, num):
            raise UserError(
                f"{where} holds {num} {kind}, but data.expected_{kind}={expected[kind]}: "
                f"complete the image set or change data.expected_{kind} (null: any number)"
            )


def check_left_out(
    config: Config, where: Path, left_out: list[LeftOut], per_class: dict[str, int]
) -> None:
    """Raise UserError if more images are unreadable than allowed, or all those of a class."""
    # Too many unreadable
    if len(left_out) > config.downsample.allow_bad:
        listed = "; ".join(f"{bad.name} ({bad.reason})" for bad in left_out[:NAMED])
        listed += f"; and {len(left_out) - NAMED} more" if len(left_out) > NAMED else ""
        raise UserError(
            f"{len(left_out)} images of {where} are unreadable: {listed}: replace them, or leave "
            f"them out with downsample.allow_bad={len(left_out)}"
        )
    # Classes without images
    empty = [name for name, num in per_class.items() if not num]
    if empty:
        raise UserError(f"{where} has no readable image of {', '.join(empty)}: replace them")


def check_ignored(config: Config, where: Path, num: int, names: list[str]) -> None:
    """Raise UserError if more images than allowed are passed over, since of their names.

    `num`: how many; `names`: the first of them, empty if they are not known any more.
    """
    if num > config.downsample.allow_ignored:
        first = f" ({listed(names, num)})" if names else ""
        raise UserError(
            f"{num} files of {where} hold images under names that are not read{first}: name them "
            f"{'|'.join(IMAGE_SUFFIXES)} (other formats must be converted), or pass "
            f"over them with downsample.allow_ignored={num}"
        )


def check_writable(folder: Path) -> None:
    """Raise UserError if the pack's folder cannot be written or made."""
    # the folder itself may still be made
    existing = nearest_existing(folder)
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise UserError(
            f"the pack cannot be written to {folder}, since {existing} is not a folder that may "
            "be written: set data.pack_dir to one"
        )


def check_space(folder: Path, num_images: int, resolution: int, ordered: bool) -> None:
    """Raise UserError if the rest of the pack does not fit on the disk.

    Images that come in another order than the pack's need room for a sorted copy, too.
    """
    # bytes of rows and labels, less those of an earlier run
    pixels = num_images * resolution * resolution * 3  # bytes
    written = disk_bytes(folder / ".making")  # kept, or removed by the spool
    needed = pixels * (1 if ordered else 2) + num_images * 8 - written  # int64 labels
    free = shutil.disk_usage(nearest_existing(folder)).free
    if needed > free:
        raise UserError(
            f"the pack needs {needed / 1e6:.1f} MB, but the disk of {folder} has "
            f"{free / 1e6:.1f} MB free: free some or set data.pack_dir to another disk"
        )


def disk_bytes(folder: Path) -> int:
    """Bytes that the files of a folder take on the disk; another process may move them away."""
    taken = 0
    with suppress(FileNotFoundError):
        for file in folder.iterdir():
            with suppress(FileNotFoundError):
                taken += file.stat().st_blocks * 512
    return taken


def nearest_existing(folder: Path) -> Path:
    """The folder itself, or the nearest one above it that exists."""
    return next(path for path in (folder, *folder.parents) if path.exists())


# --- a pack that is there ----------------------------------------------------------------------


def existing_pack(folder: Path, config: Config) -> Manifest | None:
    """The manifest of a whole pack that is there already; None if it must be made.

    Raises UserError if the folder holds a pack of other data, one whose image set the
    configuration refuses, or one that may not be read.
    """
    if not (folder / "manifest.json").exists():
        return None
    for name in ("manifest.json", "images.npy", "labels.npy"):
        check_readable(folder / name)
    # a whole manifest of the same data, and arrays as it says
    try:
        manifest = Manifest.read(folder / "manifest.json")
    except UserError:
        print(MAKE_AGAIN.format(folder, "manifest.json is not a manifest"))
        return None
    check_same_data(folder, manifest, config)
    check_same_images(folder, manifest, config)
    if problem := damage(folder, manifest):
        print(MAKE_AGAIN.format(folder, problem))
        return None
    # the image set that it was made of
    num_images = manifest.num_images + len(manifest.left_out)
    check_expected(config, folder, num_images, len(manifest.classes))
    check_left_out(config, folder, manifest.left_out, manifest.per_class)
    check_ignored(config, folder, manifest.ignored_images, [])
    print(f"downsample: the pack in {folder} is there and whole, only its record is written")
    if manifest.order != ORDER and manifest.kind not in ARRAYS:
        print(OTHER_ORDER)
    return manifest


def check_readable(file: Path) -> None:
    """Raise UserError if a file of a pack is there and may not be read: it is not damaged."""
    if file.exists() and not os.access(file, os.R_OK):
        raise UserError(
            f"{file} cannot be read by this user: ask the owner of the pack for the right to, or "
            "set data.pack_dir to another folder"
        )


def check_same_data(folder: Path, manifest: Manifest, config: Config) -> None:
    """Raise UserError if a pack is of another source, resolution or recipe."""
    expected = config.data.model_dump()
    for key in ("source", "resolution", "recipe"):
        if getattr(manifest, key) != expected[key]:
            raise UserError(
                f"the pack in {folder} has {key} {getattr(manifest, key)}, not {expected[key]}: "
                "point data.path or data.pack_dir at another folder"
            )


def check_same_images(folder: Path, manifest: Manifest, config: Config) -> None:
    """Raise UserError if the image set at hand is another one than the pack was made of.

    Without an image set at hand nothing is compared. Files are listed, not read: one that was
    replaced by another of the same name and size goes unnoticed.
    """
    location = location_at_hand(config, manifest.kind)
    if location is None:
        return
    if changes := set_changes(location, manifest):
        raise UserError(
            f"the pack in {folder} was made of another image set than the one in "
            f"{location.paths[0]} ({'; '.join(changes)}): set data.pack_dir to another folder for "
            f"a pack of this set, delete {folder} to make it again there, or point IMAGENET_DIR or "
            "data.dir at the set it was made of"
        )


def damage(folder: Path, manifest: Manifest) -> str:
    """The fault of a pack's arrays in words; empty if they are as the manifest says."""
    # Expected arrays
    rows, resolution = manifest.num_images, manifest.resolution
    kinds = {"images": ("uint8", (rows, resolution, resolution, 3)), "labels": ("int64", (rows,))}
    # Compared on disk
    for name, (dtype, shape) in kinds.items():
        try:
            array = load_npy(folder / f"{name}.npy")
        except UserError as error:
            return str(error)
        if array.dtype != dtype or array.shape != shape or not array.flags.c_contiguous:
            return f"{name}.npy has another shape than the manifest says"
        if hashlib.sha256(array.data).hexdigest() != getattr(manifest.sha256, name):
            return f"{name}.npy has another sha256 than the manifest says"
    return ""
