"""Sets of images that can be scored: a folder of images, an .npz or .npy, a pack or samples.

Nothing is held: arrays are memory-mapped and image files decoded when they are read. An .npz that
was saved compressed cannot be mapped and is the exception: its images are read into memory.
"""

import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from pipeline.base.errors import OneRankError, UserError
from pipeline.base.npy import NPZ_ERRORS, load_npy, read_header
from pipeline.images.formats import FORMATS, IMAGE_SUFFIXES, value_problem
from pipeline.images.walk import Ignored, listed, walk

# Names of the images and of their labels in an .npz, as ADM's samplers and others give them
KEYS, LABELS = ("arr_0", "images"), ("arr_1", "labels")


@dataclass(frozen=True)
class ImageSet:
    """`num` images of one size, read when they are asked for."""

    # Size of the set
    name: str  # for people
    num: int
    size: tuple[int, int]  # height and width, px
    # Its content
    read: Callable[[np.ndarray], np.ndarray]  # rows (B,) int64 -> uint8 (B,H,W,3)
    notes: tuple[str, ...] = ()  # what a reader of its scores should know

    def __len__(self) -> int:
        return self.num


def of_array(name: str, images: np.ndarray) -> ImageSet:
    """The set in an array; raises UserError unless it is uint8 (N,H,W,3)."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise UserError(
            f"{name} holds {images.dtype} {images.shape}: give images as uint8 (N,H,W,3)"
        )
    height, width = images.shape[1:3]
    return ImageSet(name, len(images), (height, width), lambda rows: images[rows])


def open_images(path: Path) -> ImageSet:
    """The images at `path`: a folder (of a pack, of samples, of image files), .npz or .npy.

    Raises UserError if there are none, or they are of several sizes.
    """
    # Folders
    if path.is_dir() and (path / "images.npy").exists():
        return of_array(str(path), load_npy(path / "images.npy"))
    if path.is_dir():
        return of_files(path)
    # Arrays
    if path.suffix == ".npy":
        return of_array(str(path), load_npy(path))
    if path.suffix == ".npz":
        images = npz_images(path)
        if images is None:
            raise UserError(f"{path} holds no images: its array must be named {' or '.join(KEYS)}")
        return of_array(str(path), images)
    raise UserError(f"{path} is not a folder, .npz or .npy: give images in one of these forms")


def home(path: Path) -> Path:
    """The folder whose files say what the images at `path` are: a pack's, or that of samples."""
    return path.parent if path.name == "images.npy" else path


def notes_on_labels(path: Path) -> Iterator[str]:
    """A note if labels come with the images at `path`, which only samples= uses."""
    file = home(path) / "labels.npy"
    arrays = zipfile.ZipFile(path).namelist() if path.suffix == ".npz" else []
    labels = [f"{name} in {path}" for name in LABELS if f"{name}.npy" in arrays]
    labels += [str(file)] if file.exists() else []
    if labels:
        yield (
            f"the labels are not used ({labels[0]}): class accuracy is a score of samples= alone, "
            "since other programs may number the classes in another order"
        )


def read_labels(path: Path, num: int, num_classes: int) -> np.ndarray | None:
    """Labels int64 (N,) of `num` images; None if all are -1 (no classes).

    Raises UserError if the file is missing or holds other values.
    """
    labels = load_npy(path)
    if labels.shape == (num,) and (labels == -1).all():
        return None
    fits = labels.shape == (num,) and np.issubdtype(labels.dtype, np.integer)
    if not fits or labels.min() < 0 or labels.max() >= num_classes:
        raise UserError(f"{path} does not hold {num} labels of {num_classes} classes: sample again")
    return np.array(labels, np.int64)


# --- files of images ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Header:
    """The part of an image file that is read before its pixels."""

    size: tuple[int, int]  # height and width, px
    is_jpeg: bool
    has_alpha: bool  # an alpha channel or a transparent colour, which are dropped


def of_files(folder: Path) -> ImageSet:
    """The image files at any depth below `folder`, in the order of their paths.

    They are those that can be packed. Raises UserError if there are none, if they are of several
    sizes, or if other files hold images too.
    """
    # Files by their names
    names, other_files = walk(folder)
    ignored = Ignored()
    ignored.add_files(folder, other_files)
    check_ignored(folder, ignored)
    if not names:
        raise UserError(
            f"{folder} holds no images ({', '.join(IMAGE_SUFFIXES)}): give their folder"
        )
    # Their headers, of one size
    files = [folder / name for name in names]
    headers = [read_header_of(file) for file in files]
    for file, header in zip(files, headers, strict=True):
        if header.size != headers[0].size:
            raise UserError(
                f"images of {folder} are of several sizes, {files[0].name} of {headers[0].size} "
                f"and {file.name} of {header.size} px (height, width): resize them to one first"
            )
    notes = tuple(notes_on_files(folder, headers, ignored))
    return ImageSet(str(folder), len(files), headers[0].size, partial(decode, files), notes)


def check_ignored(folder: Path, ignored: Ignored) -> None:
    """Raise UserError if files hold images that would not be scored."""
    if ignored.num_images:
        raise UserError(
            f"{ignored.num_images} files of {folder} hold images under names that are not read "
            f"({listed(ignored.images, ignored.num_images)}): name them "
            f"{'|'.join(IMAGE_SUFFIXES)}, convert other formats to PNG, or move them away"
        )


def notes_on_files(folder: Path, headers: list[Header], ignored: Ignored) -> Iterator[str]:
    """Notes on what a folder holds beside plain images without loss."""
    # Lossy images
    num, jpegs = len(headers), sum(header.is_jpeg for header in headers)
    if jpegs:
        yield (
            f"{jpegs:,} of the {num:,} images of {folder} are JPEGs: their compression changes the "
            "distances, so that only sets of the same format can be compared"
        )
    # Transparent images
    if alphas := sum(header.has_alpha for header in headers):
        yield f"{alphas:,} of the {num:,} images of {folder} have transparency, which is dropped"
    # Other files
    if ignored.num:
        names = listed(ignored.names, ignored.num)
        yield f"{ignored.num:,} files of {folder} are not images and are not scored: {names}"


def read_header_of(file: Path) -> Header:
    """The header of an image file; raises UserError if it cannot be read or scored."""
    # Only the header
    try:
        with Image.open(file, formats=FORMATS) as image:
            size, is_jpeg = (image.height, image.width), image.format in ("JPEG", "MPO")
            header = Header(size, is_jpeg, image.has_transparency_data)
            problem = value_problem(image)
    except Exception as error:  # Pillow raises many kinds, for damaged files and for huge ones
        reason = "" if isinstance(error, UnidentifiedImageError) else f" ({error})"
        raise UserError(f"{file} is not a readable image{reason}: replace or remove it") from error

    # Levels that scores do not know
    if problem:
        raise UserError(f"{file} has {problem}: convert it to 8 bits, 0 to 255, first")
    return header


def decode(files: list[Path], rows: np.ndarray) -> np.ndarray:
    """Images uint8 (B,H,W,3) of some of the files; raises UserError if one is damaged."""
    # In the order asked
    images = []
    for row in rows:
        try:
            with Image.open(files[row], formats=FORMATS) as image:
                images.append(np.asarray(image.convert("RGB")))
        except Exception as error:  # as above
            raise OneRankError(
                f"{files[row]} is damaged ({error}): replace or remove it"
            ) from error
    return np.stack(images)


# --- archives of arrays ------------------------------------------------------------------------


def npz_images(path: Path) -> np.ndarray | None:
    """The images of an .npz, memory-mapped if they are not compressed; None without any.

    Raises UserError if the file is missing or damaged.
    """
    # By a known key
    try:
        with zipfile.ZipFile(path) as archive:
            names = [key for key in KEYS if f"{key}.npy" in archive.namelist()]
            if not names:
                return None
            member = archive.getinfo(f"{names[0]}.npy")
            if member.compress_type == zipfile.ZIP_STORED:
                return mapped(path, archive, member)
        # Compressed arrays
        with np.load(path, allow_pickle=False) as data:
            images: np.ndarray = data[names[0]]
            return images
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: give a file that is there") from error
    except NPZ_ERRORS as error:
        raise UserError(f"{path} is damaged ({error}): get it again") from error


def mapped(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """Memory-map an uncompressed .npy inside an .npz; raises ValueError if it is another file.

    Its bytes begin after the zip's local header: 30 bytes, of which the last four give the lengths
    of the name and the extra field that follow (APPNOTE.TXT 4.3.7).
    """
    # The array's header
    with archive.open(member) as stream:
        shape, fortran_order, dtype = read_header(stream)
        header_bytes = stream.tell()
    if dtype.hasobject:
        raise ValueError("it holds Python objects")

    # The data behind it
    with path.open("rb") as raw:
        raw.seek(member.header_offset + 26)
        lengths = np.frombuffer(raw.read(4), "<u2").astype(int)
    offset = member.header_offset + 30 + int(lengths.sum()) + header_bytes
    return np.memmap(
        path, dtype, "r", offset=offset, shape=shape, order="F" if fortran_order else "C"
    )
