"""The table of packagings: how each image set may lie in the image folder.

A new packaging is a module here, whose `open_at` opens it as a Source, a row of
PACKAGINGS, and a choice of data.layout in pipeline/config/image_sets.py.
"""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Packaging:
    """One way in which an image set is distributed."""

    # Words of the configuration
    source: str  # data.source
    layout: str  # data.layout
    # How it is read
    module: str  # of pipeline.images.sources; imported when it is needed, since some take long
    patterns: tuple[str, ...]  # in the image folder; all files of one pattern belong together
    # What the patterns do not tell
    by_contents: bool = False  # a file or folder of that name may have another layout
    num_files: int | None = None  # numbered files, if there are always as many


FOLDERS = ("train", "ILSVRC/Data/CLS-LOC/train")  # the second is Kaggle's
HUB = ("train_images_[0-9].tar.gz", "data/train_images_[0-9].tar.gz")
PREPARED = ("*-{resolution}x{resolution}", "*-{resolution}x{resolution}.zip")

PACKAGINGS = (
    Packaging("train", "folders", "folders", FOLDERS, by_contents=True),
    Packaging("train", "tar", "tars", ("ILSVRC2012_img_train.tar",)),
    Packaging("train", "adm", "flat", FOLDERS, by_contents=True),
    Packaging("train", "flat", "flat", FOLDERS, by_contents=True),
    Packaging("train", "edm", "edm", ("train", "train.zip", *PREPARED), by_contents=True),
    Packaging("train", "folders.zip", "folder_archives", ("train.zip",), by_contents=True),
    Packaging("train", "folders.tar", "folder_archives", ("train.tar",)),
    Packaging("train", "tar.gz", "gzipped", ("train.tar.gz",)),
    Packaging("train", "hub", "hub", HUB, num_files=5),
    Packaging("train", "parquet", "parquet", ("train-*.parquet", "data/train-*.parquet")),
    Packaging("train", "webdataset", "webdataset", ("*-train-[0-9]*.tar", "train-[0-9]*.tar")),
    Packaging(
        "train",
        "batches",
        "batches",
        ("train_data_batch_*", "Imagenet{resolution}_train*/train_data_batch_*"),
    ),
    Packaging("train_blurred", "folders", "folders", ("train_blurred",)),
    Packaging("train_blurred", "tar.gz", "gzipped", ("train_blurred.tar.gz",)),
    Packaging("cifar10", "cifar", "cifar", ("cifar-10-python.tar.gz", "cifar-10-batches-py")),
)


@dataclass(frozen=True)
class Location:
    """The place of an image set on disk: a folder of classes, an archive, or shards."""

    # What was found
    packaging: Packaging
    root: Path  # the image folder
    paths: list[Path]
    # Size of batches
    resolution: int | str  # px; batches are of one

    @property
    def source(self) -> str:
        """data.source."""
        return self.packaging.source

    @property
    def layout(self) -> str:
        """data.layout."""
        return self.packaging.layout

    def __str__(self) -> str:
        more = f" and {len(self.paths) - 1} more" if len(self.paths) > 1 else ""
        return f"{self.paths[0]}{more} (data.source={self.source} data.layout={self.layout})"
