"""Step downsample: an image set -> a pack of small images, its manifest and its record.

    python -m pipeline.downsample config=config.yaml out=results/data/train_64-box.json

Pixels are those of `Image.open(f).convert("RGB").resize((res, res), Image.BOX)`, byte for byte;
EXIF orientation is left alone. The rows lie in the order of the image set, whatever the number of
worker processes, and the manifest is written last: a pack that has one is complete.
"""

import fcntl
import hashlib
import platform
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import PIL

from pipeline import layout
from pipeline.config import load_step, stage_keys
from pipeline.decode import TRAITS, Decoded, decode_all, num_workers
from pipeline.errors import Stopped, run_main
from pipeline.files import atomic_stream, save_npy, write_json
from pipeline.keys import Config
from pipeline.pack import check_expected, check_left_out, check_space, check_writable, existing_pack
from pipeline.sources import ImageFile, ImageSet, list_images

RECORD_KEYS = ("source", "resolution", "recipe", "num_images", "classes", "sha256")


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


# --- the pack ----------------------------------------------------------------------------------


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
