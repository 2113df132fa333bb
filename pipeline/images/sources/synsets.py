"""ImageNet's classes as numbers: the devkit's order, and the sorted one that shards count in.

Both orders are of the 1000 synset ids of ILSVRC 2012. synsets.txt has them as the devkit's
map_clsloc.txt does, line k for its label k.
"""

import re
from functools import lru_cache
from pathlib import Path

from pipeline.base.errors import UserError

SYNSET = re.compile(r"n\d{8}")


@lru_cache
def devkit_order() -> list[str]:
    """Class names by the devkit's label minus 1: entry 0 is label 1, entry 999 label 1000."""
    return Path(__file__).with_name("synsets.txt").read_text(encoding="ascii").split()


@lru_cache
def sorted_synsets() -> list[str]:
    """Class names by the label 0…999 that Hugging Face, timm and torchvision give them."""
    return sorted(devkit_order())


def named_synset(file: str) -> str | None:
    """The synset of ImageNet that a file's name begins with; None if it does not."""
    match = SYNSET.match(file)
    return match.group() if match and match.group() in known_synsets() else None


@lru_cache
def known_synsets() -> frozenset[str]:
    """All synset ids."""
    return frozenset(devkit_order())


def synset_of(label: int, name: str, where: str) -> str:
    """The class of an image with a label that counts through the sorted synsets.

    Raises UserError if the label is not in 0…999, or if the image's file name begins with
    another synset: its labels count in another order. `where` names the image in messages.
    """
    # Labels within range
    synsets = sorted_synsets()
    if not 0 <= label < len(synsets):
        raise UserError(
            f"{where} has the label {label}, which is not in 0…{len(synsets) - 1}: "
            "give shards of the labelled training set"
        )

    # Names that agree
    named = named_synset(name)
    if named not in (None, synsets[label]):
        raise UserError(
            f"{where} has the label {label} ({synsets[label]}), but its name says "
            f"{named}: give shards whose labels count through the sorted synsets"
        )
    return synsets[label]
