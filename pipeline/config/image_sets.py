"""Names of the image sets and of their packagings, and the sets that the project draws itself.

Where an image set may lie on disk is in pipeline/images/sources/packagings.py.
"""

from typing import Literal

Source = Literal["auto", "train", "train_blurred", "cifar10", "shapes", "shapes_tiny"]
Layout = Literal["auto", "folders", "tar", "tar.gz", "parquet", "webdataset", "batches", "cifar"]

MADE_SOURCES = {"shapes": 250, "shapes_tiny": 24}  # drawn sets: images per class
