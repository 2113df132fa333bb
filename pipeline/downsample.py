"""Step downsample: an image set -> a pack of small images, its manifest and its record.

    python -m pipeline.downsample config=config.yaml out=results/data/train_64-box.json

Pixels are those of Pillow up to version 12, byte for byte, except by the fast recipes
(images/recipes.py); EXIF orientation is left alone. The rows are sorted by (class, file), whatever
the packaging of the image set, the number of worker processes and the way in which they start.
Finished rows stay when a run ends in any way (pipeline/images/spool.py), and the same command
resumes from them.
"""

import signal
import time
from pathlib import Path

from pipeline.base.errors import Stopped, run_main
from pipeline.config import paths
from pipeline.config.load import load_step
from pipeline.config.schema import Config
from pipeline.data.pack import Record
from pipeline.images.checks import existing_pack
from pipeline.images.make import make_pack
from pipeline.images.sources.find import resolve_image_set
from pipeline.steps import STEPS


def downsample(config: Config, record: Path) -> None:
    """Make the pack if it is not there yet, then write its record."""
    # Whole already, or made
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
    # Last of all
    Record.of(manifest).write(record)


def stop(signal_number: int, frame: object) -> None:
    """Signal handler: end the step in order."""
    raise Stopped("the finished part of the pack is kept; the same command resumes after it")


def main(argv: list[str]) -> None:
    """Entry point: `key=value` words and out=RECORD.json."""
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    config, words = load_step(argv, STEPS["downsample"].words)
    config = resolve_image_set(config)
    downsample(config, Path(words.get("out") or paths.record_file(config)))


if __name__ == "__main__":
    run_main(main)
