"""Names of the image sets and of their packagings, and the sets that the project draws itself.

Where an image set may lie on disk is in pipeline/images/sources/packagings.py.
"""

from collections.abc import Sequence
from typing import Literal

from pipeline.base.errors import UserError

Source = Literal["auto", "train", "train_blurred", "cifar10", "shapes", "shapes_tiny"]
Layout = Literal[
    "auto",
    "folders",
    "folders.tar",
    "folders.zip",
    "tar",
    "tar.gz",
    "hub",
    "parquet",
    "webdataset",
    "batches",
    "cifar",
    "edm",
    "adm",
    "flat",
]

NO_CLASS = "no_class"  # the only class of a set without classes
CLASSLESS = (
    "train with model.class_conditional=false and sample.guidance=1, or put each image into the "
    "folder of its class"
)

MADE_SOURCES = {"shapes": 250, "shapes_tiny": 24}  # drawn sets: images per class


def check_classless(where: str, classes: Sequence[str], class_conditional: bool) -> None:
    """Raise UserError if a network is to learn the classes of a set that has none."""
    if class_conditional and list(classes) == [NO_CLASS]:
        raise UserError(f"{where} has no classes, but model.class_conditional=true: {CLASSLESS}")
