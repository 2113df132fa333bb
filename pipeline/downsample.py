"""Step downsample: an image set -> a pack of small images, its manifest and its record.

    python -m pipeline.downsample config=config.yaml out=results/data/train_64-box.json

Pixels are those of `Image.open(f).convert("RGB").resize((res, res), Image.BOX)`, byte for byte;
EXIF orientation is left alone. The rows lie in the order of the image set, whatever the number of
worker processes, and the manifest is written last: a pack that has one is complete.
"""

import fcntl
import hashlib
import io
import itertools
import multiprocessing
import os
import platform
import shutil
import signal
import threading
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import PIL
from PIL import Image, UnidentifiedImageError

from pipeline import layout
from pipeline.config import Config, load_step, stage_keys
from pipeline.errors import Stopped, UserError, run_main
from pipeline.files import atomic_stream, load_npy, read_json, save_npy, write_json
from pipeline.sources import ImageFile, ImageSet, list_images, read_image

RECORD_KEYS = ("source", "resolution", "recipe", "num_images", "classes", "sha256")
BATCH = 16  # images a worker decodes at a time
EXIF_ORIENTATION = 0x0112
TRAITS = ("grey", "cmyk", "exif_rotated", "misnamed")  # counted in the manifest
# The formats of sources.IMAGE_SUFFIXES; others, such as EPS, may run programs.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
GREY_MODES = {"1", "L", "LA", "I", "I;16", "F"}


# --- one image ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Decoded:
    """What became of one image file: pixels (res, res, 3) uint8, or why there are none."""

    pixels: np.ndarray | None
    traits: tuple[str, ...] = ()  # of TRAITS
    problem: str = ""


def shrink(image: Image.Image, resolution: int) -> np.ndarray:
    """An image of any mode, both axes squashed to `resolution`: (res, res, 3) uint8."""
    size = (resolution, resolution)
    return np.asarray(image.convert("RGB").resize(size, Image.Resampling.BOX))


def traits_of(image: Image.Image, name: str) -> tuple[str, ...]:
    """What is odd about an opened image file, for the manifest."""
    try:
        turned = image.getexif().get(EXIF_ORIENTATION, 1) != 1
    except Exception:  # damaged EXIF raises many kinds, and the pixels do not need it
        turned = False
    jpeg = name.lower().endswith((".jpeg", ".jpg"))
    has = (
        image.mode in GREY_MODES,
        image.mode == "CMYK",
        turned,
        jpeg and image.format not in ("JPEG", "MPO"),
    )
    return tuple(itertools.compress(TRAITS, has))


def decode(place: Path, image: ImageFile, resolution: int) -> Decoded:
    """Read and shrink one image; damaged ones and decompression bombs come back as a problem."""
    try:
        with Image.open(io.BytesIO(read_image(place, image)), formats=FORMATS) as opened:
            traits = traits_of(opened, image.name)
            return Decoded(shrink(opened, resolution), traits)
    except UnidentifiedImageError:  # its message holds an address in memory
        return Decoded(None, problem="no image of a known format")
    except Exception as error:  # Pillow raises many kinds for damaged files
        reason = getattr(error, "strerror", None) or error  # without the path
        return Decoded(None, problem=f"{type(error).__name__}: {reason}")


def decode_batch(place: Path, images: tuple[ImageFile, ...], resolution: int) -> list[Decoded]:
    """`decode` for several images; their files' warnings are not shown."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [decode(place, image, resolution) for image in images]


# --- all images, in order ----------------------------------------------------------------------


def start_worker() -> None:
    """Let the parent alone handle Ctrl-C, and end this process when the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def follow_parent() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=follow_parent, daemon=True).start()


def batches(images: list[ImageFile]) -> Iterator[tuple[ImageFile, ...]]:
    """Consecutive images in tuples of BATCH."""
    rest = iter(images)
    while batch := tuple(itertools.islice(rest, BATCH)):
        yield batch


def decode_all(
    image_set: ImageSet, resolution: int, workers: int
) -> Generator[Decoded, None, None]:
    """Every image of the set, in order, decoded by `workers` processes (1: by this one).

    At most a few batches per worker are in memory. Raises UserError where a worker dies.
    """
    place, images = image_set.place, image_set.images
    if workers == 1:
        for batch in batches(images):
            yield from decode_batch(place, batch, resolution)
        return
    context = multiprocessing.get_context("spawn")  # fork is unsafe beside threads
    pool = ProcessPoolExecutor(workers, context, start_worker)
    pending: deque[Future[list[Decoded]]] = deque()
    try:
        for batch in batches(images):
            pending.append(pool.submit(decode_batch, place, batch, resolution))
            if len(pending) == 3 * workers:
                yield from pending.popleft().result()
        while pending:
            yield from pending.popleft().result()
    except BrokenProcessPool as error:
        raise UserError(
            "a process that decodes images was killed, perhaps for lack of memory: "
            "run the same command again with fewer runtime.workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def num_workers(config: Config, num_images: int) -> int:
    """Processes to decode with: runtime.workers, no more than cores or batches there are."""
    cores = len(os.sched_getaffinity(0))
    return max(1, min(config.runtime.workers, cores, num_images // BATCH))


# --- writing -----------------------------------------------------------------------------------


@dataclass
class Tally:
    """What is known of the images written so far."""

    labels: list[int] = field(default_factory=list)
    left_out: list[dict[str, str]] = field(default_factory=list)
    traits: Counter[str] = field(default_factory=Counter)
    digest: Any = field(default_factory=hashlib.sha256)  # of the pixels


def write_header(stream: IO[bytes], shape: tuple[int, ...]) -> None:
    """The .npy header of a uint8 array, equally long for any number of rows."""
    stream.seek(0)
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, header)


def write_rows(
    stream: IO[bytes],
    rows: Iterable[tuple[ImageFile, Decoded]],
    resolution: int,
    progress: Callable[[int], None],
) -> Tally:
    """Stream the images into a .npy; `progress` hears how many are done."""
    tally = Tally()
    write_header(stream, (0, resolution, resolution, 3))
    for done, (image, decoded) in enumerate(rows, 1):
        if decoded.pixels is None:
            tally.left_out.append({"name": image.name, "reason": decoded.problem})
        else:
            stream.write(decoded.pixels.data)
            tally.digest.update(decoded.pixels.data)
            tally.labels.append(image.label)
            tally.traits.update(decoded.traits)
        progress(done)
    write_header(stream, (len(tally.labels), resolution, resolution, 3))
    return tally


def progress_printer(total: int, seconds: float) -> Callable[[int], None]:
    """A function of the images done that prints a line at most every so many seconds."""
    start = last = time.monotonic()

    def progress(done: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < seconds:
            return
        last = now
        rate = done / (now - start)
        left = (total - done) / rate
        print(
            f"downsample: {done}/{total} images, {rate:.0f} images/s, {left:.0f} s left", flush=True
        )

    return progress


def write_images(path: Path, image_set: ImageSet, config: Config) -> Tally:
    """Decode the image set into `path`, atomically.

    Raises UserError where too many images are unreadable or the disk is full.
    """
    resolution, images = config.data.resolution, image_set.images
    workers = num_workers(config, len(images))
    progress = progress_printer(len(images), config.runtime.progress_seconds)
    with (
        atomic_stream(path) as stream,
        closing(decode_all(image_set, resolution, workers)) as decoded,
    ):
        with suppress(OSError):  # some file systems have no locks
            fcntl.flock(stream, fcntl.LOCK_EX)
        tally = write_rows(stream, zip(images, decoded, strict=True), resolution, progress)
        counts = per_class(image_set.classes, tally.labels)
        check_left_out(config, image_set.place, tally.left_out, counts)
    return tally


def remove_abandoned(path: Path) -> None:
    """Delete what killed runs left of `path`: temporary files that no living process has locked."""
    for temporary in path.parent.glob(f".{path.name}.*.tmp"):
        with suppress(OSError), temporary.open("r+b") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            temporary.unlink()


# --- checks ------------------------------------------------------------------------------------


def check_expected(config: Config, where: Path, num_images: int, num_classes: int) -> None:
    """Raise UserError where the image set has another size than the configuration says."""
    data = config.data
    counted = {"images": num_images, "classes": num_classes}
    expected = {"images": data.expected_images, "classes": data.expected_classes}
    for what, number in counted.items():
        if expected[what] not in (None, number):
            raise UserError(
                f"{where} holds {number} {what}, but data.expected_{what}={expected[what]}: "
                f"complete the image set or change data.expected_{what} (null: any number)"
            )


def check_left_out(
    config: Config, where: Path, left_out: list[dict[str, str]], per_class: dict[str, int]
) -> None:
    """Raise UserError where more images are unreadable than allowed, or all those of a class."""
    if len(left_out) > config.downsample.allow_bad:
        listed = "; ".join(f"{bad['name']} ({bad['reason']})" for bad in left_out)
        raise UserError(
            f"{len(left_out)} images of {where} are unreadable: {listed}: replace them, or leave "
            f"them out with downsample.allow_bad={len(left_out)}"
        )
    empty = [name for name, number in per_class.items() if not number]
    if empty:
        raise UserError(f"{where} has no readable image of {', '.join(empty)}: replace them")


def check_writable(folder: Path) -> None:
    """Raise UserError where the pack's folder cannot be written or made."""
    existing = nearest_existing(folder)
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise UserError(
            f"the pack cannot be written to {folder}, since {existing} is no folder that may be "
            "written: set data.pack_dir to one"
        )


def check_space(folder: Path, num_images: int, resolution: int) -> None:
    """Raise UserError where the pack does not fit on the disk."""
    needed = num_images * (resolution * resolution * 3 + 8)  # bytes: uint8 pixels, int64 label
    free = shutil.disk_usage(nearest_existing(folder)).free
    if needed > free:
        raise UserError(
            f"the pack needs {needed / 1e6:.1f} MB, but the disk of {folder} has "
            f"{free / 1e6:.1f} MB free: free some or set data.pack_dir to another disk"
        )


def nearest_existing(folder: Path) -> Path:
    """The folder itself, or the nearest one above it that exists."""
    return next(path for path in (folder, *folder.parents) if path.exists())


# --- the pack ----------------------------------------------------------------------------------


def existing_pack(folder: Path, config: Config) -> dict[str, Any] | None:
    """The manifest of a whole pack that is there already; None where it must be made.

    Raises UserError where the folder holds a pack of other data, or one whose image set the
    configuration refuses.
    """
    if not (folder / "manifest.json").exists():
        return None
    try:
        manifest = read_manifest(folder / "manifest.json")
        check_same_data(folder, manifest, config)
        problem = damage(folder, manifest)
    except (KeyError, TypeError, ValueError):
        problem = "manifest.json is no manifest"
    if problem:
        print(f"downsample: the pack in {folder} is damaged ({problem}): making it again")
        return None
    num_images = manifest["num_images"] + len(manifest["left_out"])
    check_expected(config, folder, num_images, len(manifest["classes"]))
    check_left_out(config, folder, manifest["left_out"], manifest["per_class"])
    print(f"downsample: the pack in {folder} is there and whole, only its record is written")
    return manifest


def read_manifest(path: Path) -> dict[str, Any]:
    """The mapping in a manifest; raises ValueError or TypeError where it is none."""
    try:
        return dict(read_json(path))
    except UserError as error:
        raise ValueError from error


def check_same_data(folder: Path, manifest: dict[str, Any], config: Config) -> None:
    """Raise UserError where a pack is of another source, resolution or recipe."""
    wanted = config.data.model_dump()
    for key in ("source", "resolution", "recipe"):
        if manifest[key] != wanted[key]:
            raise UserError(
                f"the pack in {folder} has {key} {manifest[key]}, not {wanted[key]}: "
                "point data.path or data.pack_dir at another folder"
            )


def damage(folder: Path, manifest: dict[str, Any]) -> str:
    """What is wrong with the arrays of a pack; empty where they are what the manifest says."""
    rows, resolution = manifest["num_images"], manifest["resolution"]
    kinds = {"images": ("uint8", (rows, resolution, resolution, 3)), "labels": ("int64", (rows,))}
    for name, (dtype, shape) in kinds.items():
        try:
            array = load_npy(folder / f"{name}.npy")
        except UserError as error:
            return str(error)
        if array.dtype != dtype or array.shape != shape or not array.flags.c_contiguous:
            return f"{name}.npy has another shape than the manifest says"
        if hashlib.sha256(array.data).hexdigest() != manifest["sha256"][name]:
            return f"{name}.npy has another sha256 than the manifest says"
    return ""


def make_pack(folder: Path, config: Config) -> dict[str, Any]:
    """Make the pack and return its manifest, which is written last."""
    check_writable(folder)
    print(f"downsample: listing the images of data.source={config.data.source}", flush=True)
    image_set = list_images(config)
    num_images = len(image_set.images)
    check_expected(config, image_set.place, num_images, len(image_set.classes))
    remove_abandoned(folder / "images.npy")
    check_space(folder, num_images, config.data.resolution)
    (folder / "manifest.json").unlink(missing_ok=True)
    tally = write_images(folder / "images.npy", image_set, config)
    labels = np.array(tally.labels, dtype=np.int64)
    save_npy(folder / "labels.npy", labels)
    hashes = {
        "images": tally.digest.hexdigest(),
        "labels": hashlib.sha256(labels.data).hexdigest(),
    }
    manifest = describe(config, image_set, tally, hashes)
    write_json(folder / "manifest.json", manifest)
    return manifest


def describe(
    config: Config, image_set: ImageSet, tally: Tally, hashes: dict[str, str]
) -> dict[str, Any]:
    """The manifest of a pack: its record and everything else worth knowing."""
    return {
        "source": config.data.source,
        "resolution": config.data.resolution,
        "recipe": config.data.recipe,
        "num_images": len(tally.labels),
        "classes": image_set.classes,
        "sha256": hashes,
        "config": stage_keys(config, "downsample"),
        "kind": image_set.kind,
        "per_class": per_class(image_set.classes, tally.labels),
        "counts": {trait: tally.traits[trait] for trait in TRAITS},
        "ignored": image_set.ignored,
        "left_out": tally.left_out,
        "versions": {
            "python": platform.python_version(),
            "pillow": PIL.__version__,
            "numpy": np.__version__,
        },
    }


def per_class(classes: list[str], labels: list[int]) -> dict[str, int]:
    """Number of images of each class by its name."""
    counts = Counter(labels)
    return {name: counts[label] for label, name in enumerate(classes)}


def downsample(config: Config, record: Path) -> None:
    """Make the pack where it is not there yet, then write its record.

    Raises UserError, before anything is decoded where possible, and leaves nothing half-written.
    """
    start = time.monotonic()
    folder = layout.pack_folder(config)
    manifest = existing_pack(folder, config)
    if manifest is None:
        manifest = make_pack(folder, config)
        seconds = time.monotonic() - start
        print(
            f"downsample: {manifest['num_images']} images of {len(manifest['classes'])} classes, "
            f"{len(manifest['left_out'])} left out, in {seconds:.1f} s "
            f"({manifest['num_images'] / seconds:.0f} images/s): {folder}"
        )
    write_json(record, {key: manifest[key] for key in RECORD_KEYS})


def stop(signal_number: int, frame: object) -> None:
    """Signal handler: end the step in order, so that temporary files go."""
    raise Stopped("downsample wrote nothing; the same command starts again")


def main(argv: list[str]) -> None:
    """Entry point: `key=value` words and out=RECORD.json."""
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    config, own = load_step(argv, ["out"])
    downsample(config, Path(own.get("out") or layout.record_file(config)))


if __name__ == "__main__":
    run_main(main)
