"""The class names of image sets that only number their classes."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pipeline.base.errors import UserError
from pipeline.images.sources.synsets import named_synset, sorted_synsets, synset_of

MOST = 1000  # classes of a set that does not name them: labels are 0 … 999
# How the words begin by which Hugging Face calls ImageNet's first and last class; they are in the
# order of the sorted synsets.
IMAGENET_ENDS = re.compile(r"tench\b.*\0toilet tissue\b.*", re.DOTALL)


@dataclass(frozen=True)
class ClassNames:
    """The name of each label."""

    names: list[str]
    are_synsets: bool  # images may then be named for their synsets, which is compared

    def of(self, label: int | None, file: str, where: str) -> str:
        """The class of an image with this label and file name; `where` is for messages.

        Raises UserError if there is no such label, or the file name says another synset.
        """
        # Synsets are compared
        number = -1 if label is None else label
        if self.are_synsets:
            return synset_of(number, file, where)
        # Other classes are counted
        if not 0 <= number < len(self.names):
            raise UserError(
                f"{where} has the label {number}, which is not in 0…{len(self.names) - 1}: "
                "give shards of the labelled training set"
            )
        return self.names[number]


def name_classes(
    counts: Counter[int | None],
    images: Iterable[tuple[int | None, str]],
    names: list[str] | None = None,
) -> ClassNames:
    """The names of a set's classes.

    `counts`: number of images by label; `images`: label and file name of some of them; `names`:
    the names that the set itself has. ImageNet's are the synsets, whatever it calls them: it is
    known by its files' names, by the first and last name, or has 1,000 classes without names.
    """
    # Names of ImageNet
    labels = {synset: label for label, synset in enumerate(sorted_synsets())}
    named = [(label, synset) for label, file in images if (synset := named_synset(file))]

    # ImageNet, or another set
    if names:
        agree = all(labels[synset] == label for label, synset in named)
        is_imagenet = (bool(named) and agree) or is_named_imagenet(names)
    else:
        is_imagenet = bool(named) or set(counts) == set(range(MOST))

    # Synsets or numbers
    if is_imagenet:
        return ClassNames(sorted_synsets(), True)
    return ClassNames(names or [f"class{label:04d}" for label in range(MOST)], False)


def is_named_imagenet(names: list[str]) -> bool:
    """Whether these are Hugging Face's words for ImageNet's classes."""
    return len(names) == MOST and bool(IMAGENET_ENDS.fullmatch(f"{names[0]}\0{names[-1]}"))


def proper_names(names: list[str], where: Path) -> list[str]:
    """Class names that can be a part of a path; raises UserError if two are the same."""
    proper = [name.strip().replace("/", "_") or "_" for name in names]
    if twice := [name for name, num in Counter(proper).items() if num > 1]:
        raise UserError(
            f"{where} gives several labels the class name {twice[0]!r}: name the classes apart"
        )
    return proper
