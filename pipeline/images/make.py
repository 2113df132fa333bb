"""An image set -> a pack in its folder: everything that is not finished is decoded and sorted.

One process at a time makes a pack, in the folder `.making` inside the pack's.
"""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from pipeline.base.errors import UserError
from pipeline.base.files import remove_spent
from pipeline.base.locks import locked, wait_until_free
from pipeline.base.progress import Progress
from pipeline.config.image_sets import CLASSLESS, NO_CLASS
from pipeline.config.schema import Config
from pipeline.data.pack import Manifest, Sizes
from pipeline.images import workers
from pipeline.images.assemble import SMALL, assemble, move_into_place
from pipeline.images.checks import (
    check_expected,
    check_ignored,
    check_space,
    check_writable,
    existing_pack,
)
from pipeline.images.decode import versions
from pipeline.images.resample import ORDER
from pipeline.images.sources.base import Item, Member, Source, Span, Stretch
from pipeline.images.sources.opening import open_source
from pipeline.images.spool import Spool
from pipeline.images.walk import listed
from pipeline.images.workers import Batch, PackFormat


def make_pack(folder: Path, config: Config) -> Manifest:
    """Make the pack and return its manifest, which is moved into place last.

    Another process that makes it is waited for. Raises UserError, before anything is decoded if
    possible.
    """
    # a pack that only has to be moved
    making, was_there = folder / ".making", (folder / "manifest.json").exists()
    check_writable(folder)
    check_writable(making)
    if (making / "manifest.json").exists():  # a run was killed while it moved the pack, or moves it
        wait_until_free(making)
        with locked(making):
            move_into_place(making, folder)
        if manifest := existing_pack(folder, config):
            return manifest
    # checks before anything is decoded
    print(f"downsample: listing the images of data.source={config.data.source}", flush=True)
    source = open_source(config)
    if source.num_images is not None and source.classes is not None:
        check_expected(config, source.place, source.num_images, len(source.classes))
        check_ignored(config, source.place, source.ignored.num_images, source.ignored.images)
        check_space(folder, source.num_images, config.data.resolution, source.ordered)
    # one process at a time, and another may have made it meanwhile
    waited = wait_until_free(making)
    with locked(making):
        if (waited or not was_there) and (manifest := existing_pack(folder, config)):
            remove_spent(making)
            return manifest
        return write_pack(folder, making, source, config)


def write_pack(folder: Path, making: Path, source: Source, config: Config) -> Manifest:
    """Decode, sort and move into place; returns the manifest."""
    # From the images on
    spool = Spool(making, config.data.resolution, spool_header(config, source))
    try:
        spool.complete(fill(spool, source, config))
        manifest = assemble(spool, source, config)
    finally:
        spool.close()
    # For the reader
    for note in notes_on(manifest, source):
        print(f"downsample: {note}")
    # The manifest last
    manifest.write(making / "manifest.json")
    move_into_place(making, folder)
    return manifest


def notes_on(manifest: Manifest, source: Source) -> Iterator[str]:
    """Lines about an image set that a reader of the pack's results should know."""
    # Other files
    if ignored := source.ignored.num:
        names = listed(source.ignored.names, ignored)
        yield f"{ignored} files are not images by their names: {names}"
    # Transparent pixels
    if alphas := manifest.counts["alpha"]:
        yield (
            f"{alphas} images have transparent pixels, whose hidden colours show in the pack: "
            "lay them over a background first if that is not wanted"
        )
    # Resized originals
    if manifest.resized and manifest.sizes:
        yield (
            f"all images of {source.place} are {size_words(manifest.sizes)}: if they are "
            "photographs, these are not the originals, and another program has resized them"
        )
    # Classes
    if manifest.classes == [NO_CLASS]:
        yield f"the images of {source.place} have no classes: {CLASSLESS}"
    elif source.kind == "adm":
        yield (
            f"the {len(manifest.classes)} classes are the parts of the images' names before the "
            "first _, as in ADM's data: if that is wrong, set data.layout=flat (no classes)"
        )


def size_words(sizes: Sizes) -> str:
    """The sizes of resized images in words."""
    width, height = sizes.largest
    is_one = sizes.share == 1
    return f"of {width} x {height} px" if is_one else f"at most {SMALL} px on their short side"


def spool_header(config: Config, source: Source) -> dict[str, object]:
    """Everything that a row of the spool depends on, except the images themselves."""
    pixels = {name: version for name, version in versions().items() if name != "python"}
    header: dict[str, object] = {"kind": source.kind, "place": str(source.place)}
    header |= {"resolution": config.data.resolution, "recipe": config.data.recipe}
    return header | {"versions": pixels, "order": ORDER}


# --- decoding into the spool ---------------------------------------------------------------------


class Reading:
    """The batches of a source that are still to be decoded, with counts of images."""

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
        """Those of the source that hold images; raises UserError if it cannot be read on."""
        try:
            yield from (stretch for stretch in self.source.stretches() if stretch.items)
        except OSError as error:
            raise UserError(
                f"{self.source.place} cannot be read on ({error.strerror}: {error.filename}): "
                "fix that and run the same command again, which resumes after the finished part"
            ) from error


def fill(spool: Spool, source: Source, config: Config) -> int:
    """Decode everything that is not finished into the spool; returns the number of images.

    Raises UserError if the source vanishes or the disk is full; finished stretches stay.
    """
    # All unread stretches
    reading, runtime = Reading(source, spool), config.runtime
    # worker processes and their progress lines
    processes = workers.num_workers(config, source.num_images, source.batch)
    total = source.num_images or config.data.expected_images
    progress = Progress("downsample", total, runtime.progress_seconds)
    # rows by the workers, journal by this process
    pack_format = PackFormat(config.data.recipe, config.data.resolution)
    decoding = workers.decode_all(
        reading.batches(), pack_format, spool.rows_file, processes, runtime.start_method
    )
    with closing(decoding):
        num_decoded = 0
        for batch, written in decoding:
            check_there([batch.items[place] for place in written.problems])
            spool.note(batch.start, written)
            if batch.last:
                spool.finish(batch.stretch, batch.first - batch.start)
            num_decoded += len(batch.items)
            progress.num_before = reading.skipped
            if progress.due():
                progress.show(num_decoded + reading.skipped)
    if reading.skipped:
        print(f"downsample: resumed after {reading.skipped} images of an earlier run", flush=True)
    return reading.seen


def check_there(unreadable: list[Item]) -> None:
    """Raise UserError if images are unreadable because their folder or archive has gone.

    One file that is gone from its folder is an unreadable image like others.
    """
    # Each folder or archive
    for where in (item.where for item in unreadable):
        if isinstance(where, Span | Member):
            is_file = isinstance(where, Span) and where.size < 0
            holder = Path(where.path).parent if is_file else Path(where.path)
            if not holder.exists():
                raise UserError(
                    f"{holder} has vanished: bring it back and run the same command again, "
                    "which resumes after the finished part"
                )
