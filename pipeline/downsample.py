"""Step downsample: an image set -> a pack of small images, its manifest and its record.

    python -m pipeline.downsample config=config.yaml out=results/data/train_64-box.json

Pixels are those that Pillow gives, byte for byte (images/recipes.py); EXIF orientation is left
alone. The rows are sorted by (class, file), whatever the packaging of the image set, the number of
worker processes and the way in which they start. What is finished stays when a run ends in any
way (pipeline/images/spool.py), and the same command goes on from it.
"""

import platform
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.base.errors import Stopped, UserError, run_main
from pipeline.base.locks import locked, wait_until_free
from pipeline.config import paths
from pipeline.config.load import load_step
from pipeline.config.schema import Config
from pipeline.config.stages import stage_keys
from pipeline.data.pack import Manifest, Record
from pipeline.images import workers
from pipeline.images.assemble import (
    check_unique,
    counts,
    finished,
    move_into_place,
    pack_order,
    write_arrays,
)
from pipeline.images.checks import (
    check_expected,
    check_left_out,
    check_space,
    check_writable,
    existing_pack,
)
from pipeline.images.decode import TRAITS
from pipeline.images.recipes import Recipe
from pipeline.images.sources.base import Item, Source, Span, Stretch
from pipeline.images.sources.find import resolve_image_set
from pipeline.images.sources.opening import open_source
from pipeline.images.spool import Spool
from pipeline.images.workers import Batch

# --- decoding into the spool ---------------------------------------------------------------------


class Reading:
    """The batches of a source that are still to be decoded; counts what it hands out or skips."""

    def __init__(self, source: Source, spool: Spool) -> None:
        self.source, self.spool = source, spool
        self.seen = 0  # images, those of finished stretches too
        self.skipped = 0  # images of finished stretches

    def batches(self) -> Iterator[Batch]:
        """Batches of the stretches that are not finished."""
        for stretch in self.stretches():
            first = self.seen
            self.seen += len(stretch.items)
            if self.spool.skip(stretch, first):
                self.skipped += len(stretch.items)
            else:
                yield from workers.split(stretch, first, self.source.batch)

    def stretches(self) -> Iterator[Stretch]:
        """Those of the source; raises UserError where it cannot be read on."""
        try:
            yield from self.source.stretches()
        except OSError as error:
            raise UserError(
                f"{self.source.place} cannot be read on ({error.strerror}: {error.filename}): "
                "mend it and run the same command again, which goes on from what is finished"
            ) from error


def fill(spool: Spool, source: Source, config: Config) -> int:
    """Decode all that is not finished into the spool; returns the number of images.

    Raises UserError where the source vanishes or the disk is full; what is finished stays.
    """
    reading = Reading(source, spool)
    recipe = Recipe(config.data.recipe, config.data.resolution, config.downsample.fast)
    processes = workers.num_workers(config, source.num_images, source.batch)
    total = source.num_images or config.data.expected_images
    report = progress_printer(total, config.runtime.progress_seconds)
    decoding = workers.decode_all(
        reading.batches(), recipe, spool.rows_file, processes, config.runtime.start_method
    )
    with closing(decoding):
        done = 0
        for batch, written in decoding:
            check_there([batch.items[place] for place in written.problems])
            spool.note(batch.start, written)
            if batch.last:
                spool.finish(batch.stretch, batch.first - batch.start)
            done += len(batch.items)
            report(done, reading.skipped)
    if reading.skipped:
        print(f"downsample: went on after {reading.skipped} images of an earlier run", flush=True)
    return reading.seen


def check_there(unreadable: list[Item]) -> None:
    """Raise UserError where images are unreadable since what holds them has gone.

    One file that is gone from its folder is an unreadable image like others.
    """
    for where in (item.where for item in unreadable):
        if isinstance(where, Span):
            holder = Path(where.path).parent if where.size < 0 else Path(where.path)
            if not holder.exists():
                raise UserError(
                    f"{holder} has vanished: bring it back and run the same command again, "
                    "which goes on from what is finished"
                )


def progress_printer(total: int | None, seconds: float) -> Callable[[int, int], None]:
    """A function of the images done now and before that prints a line every so many seconds."""
    start = last = time.monotonic()

    def progress(done: int, before: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < seconds:
            return
        last = now
        rate = done / (now - start)
        left = f", {max(0, total - done - before) / rate:.0f} s left" if total else ""
        of = f"/{total}" if total else ""
        print(f"downsample: {done + before}{of} images, {rate:.0f} images/s{left}", flush=True)

    return progress


# --- the pack ----------------------------------------------------------------------------------


def versions() -> dict[str, str]:
    """Versions of everything that may change a pixel."""
    packages = ("pillow", "simplejpeg", "numba", "numpy")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


def spool_header(config: Config, source: Source) -> dict[str, Any]:
    """All that a row of the spool depends on, but for the images themselves."""
    pixels = {name: number for name, number in versions().items() if name != "python"}
    keys = {"resolution": config.data.resolution, "recipe": config.recipe}
    return {"kind": source.kind, "place": str(source.place), "versions": pixels} | keys


def make_pack(folder: Path, config: Config) -> Manifest:
    """Make the pack and return its manifest, which is moved into place last.

    One process at a time makes a pack; another waits for it. Raises UserError, before anything
    is decoded where possible.
    """
    check_writable(folder)
    making = folder / ".making"
    if (making / "manifest.json").exists():  # a run was killed while it moved the pack
        with locked(making):
            move_into_place(making, folder)
        if manifest := existing_pack(folder, config):
            return manifest
    print(f"downsample: listing the images of data.source={config.data.source}", flush=True)
    source = open_source(config)
    if source.num_images is not None and source.classes is not None:
        check_expected(config, source.place, source.num_images, len(source.classes))
        check_space(folder, source.num_images, config.data.resolution, source.ordered)
    waited = wait_until_free(making)
    with locked(making):
        if waited and (manifest := existing_pack(folder, config)):
            shutil.rmtree(making)
            return manifest
        return write_pack(folder, making, source, config)


def write_pack(folder: Path, making: Path, source: Source, config: Config) -> Manifest:
    """Decode, sort and move into place; returns the manifest."""
    spool = Spool(making, config.data.resolution, spool_header(config, source))
    try:
        spool.complete(fill(spool, source, config))
        manifest = assemble(spool, source, config)
    finally:
        spool.close()
    manifest.write(making / "manifest.json")
    move_into_place(making, folder)
    return manifest


def assemble(spool: Spool, source: Source, config: Config) -> Manifest:
    """Put the rows of a full spool into the pack's order; returns the manifest.

    Raises UserError where images or classes are missing, or too many are unreadable.
    """
    images = finished(spool)
    check_unique(images, source.place)
    kinds = np.unique(images.classes)
    classes = [name.decode("utf-8", "surrogateescape") for name in kinds]
    check_expected(config, source.place, len(images.kept), len(classes))
    order = pack_order(images)
    labels = np.searchsorted(kinds, images.classes[order]).astype(np.int64)
    per_class = counts(classes, labels)
    check_left_out(config, source.place, images.left_out, per_class)
    return Manifest(
        source=config.data.source,
        resolution=config.data.resolution,
        recipe=config.recipe,
        num_images=len(labels),
        classes=classes,
        sha256=write_arrays(spool, order, labels),
        config=stage_keys(config, "downsample"),
        kind=source.kind,
        per_class=per_class,
        counts={trait: images.traits[trait] for trait in TRAITS},
        ignored=source.ignored,
        left_out=images.left_out,
        versions=versions(),
    )


def downsample(config: Config, record: Path) -> None:
    """Make the pack where it is not there yet, then write its record."""
    start = time.monotonic()
    folder = paths.pack_folder(config)
    manifest = existing_pack(folder, config)
    if manifest is None:
        manifest = make_pack(folder, config)
        seconds = time.monotonic() - start
        print(
            f"downsample: {manifest.num_images} images of {len(manifest.classes)} classes, "
            f"{len(manifest.left_out)} left out, in {seconds:.1f} s "
            f"({manifest.num_images / seconds:.0f} images/s): {folder}"
        )
    Record.of(manifest).write(record)


def stop(signal_number: int, frame: object) -> None:
    """Signal handler: end the step in order."""
    raise Stopped("what downsample has finished is kept; the same command goes on from there")


def main(argv: list[str]) -> None:
    """Entry point: `key=value` words and out=RECORD.json."""
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    config, own = load_step(argv, ["out"])
    config = resolve_image_set(config)
    downsample(config, Path(own.get("out") or paths.record_file(config)))


if __name__ == "__main__":
    run_main(main)
