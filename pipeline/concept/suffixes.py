"""Vectors that end each prompt and each document, such as that of "End of text."."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.base.errors import UserError
from pipeline.base.files import sha256_json
from pipeline.base.npy import load_npy
from pipeline.concept.spool import Document
from pipeline.config.concept_keys import Concept


class Suffixes(NamedTuple):
    """Vectors (D,) float32 that end each prompt and each document; None: there is none."""

    prompt: np.ndarray | None
    document: np.ndarray | None

    @property
    def hashes(self) -> dict[str, str | None]:
        """Hex sha256 of their numbers by the keys of `concept`; that of a prompt if it is there."""
        hashes = {"suffix": sha256_of(self.document)}
        return hashes if self.prompt is None else hashes | {"prompt_suffix": sha256_of(self.prompt)}


def sha256_of(vector: np.ndarray | None) -> str | None:
    """Hex sha256 of the numbers of a vector; None of none."""
    return None if vector is None else sha256_json(vector.tolist())


def suffixes_of(keys: Concept) -> Suffixes:
    """The suffixes that the keys name.

    Raises UserError if the file of one is not a vector of the dimension, finite in float32, or if
    prompts are to end in one, and there are none.
    """
    if keys.prompt_suffix is not None and not keys.pairs:
        raise UserError(
            f"concept.prompt_suffix={keys.prompt_suffix} is not possible, since documents have no "
            "prompts: give concept.pairs=true, or leave it out"
        )
    names = ("prompt_suffix", "suffix")
    return Suffixes(*(vector_of(name, getattr(keys, name), keys.dimension) for name in names))


def vector_of(key: str, path: str | None, dimension: int) -> np.ndarray | None:
    """The vector (dimension,) float32 in the file that concept.`key` names; None: it names none."""
    if path is None:
        return None
    given = np.squeeze(load_npy(Path(path)))
    numbers = given if given.dtype.kind in "fiu" else np.array(np.nan)
    with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused
        vector = numbers.astype(np.float32)
    if vector.shape != (dimension,) or not np.isfinite(vector).all():
        raise UserError(
            f"concept.{key}={path} is of shape {given.shape} or not finite in float32 "
            f"({given.dtype}): give an .npy of one vector of concept.dimension={dimension} numbers"
        )
    return vector


def ended(documents: Iterator[Document], suffixes: Suffixes) -> Iterator[Document]:
    """Documents with the suffixes, which have no text, if there are any."""
    for document in documents:
        if document.prompt is not None and suffixes.prompt is not None:
            longer = inserted(document, suffixes.prompt, document.prompt)
            document = longer._replace(prompt=document.prompt + 1)
        if suffixes.document is not None:
            document = inserted(document, suffixes.document, len(document.vectors))
        yield document


def inserted(document: Document, vector: np.ndarray, place: int) -> Document:
    """A document with a vector that has no text before the sentence at `place`."""
    texts = document.sentences
    if texts is not None:
        texts = [*texts[:place], None, *texts[place:]]
    vectors = np.insert(document.vectors, place, vector, axis=0)
    return document._replace(vectors=vectors, sentences=texts)


def suffix_rows(
    offsets: np.ndarray, prompts: np.ndarray | None, of_documents: bool, of_prompts: bool
) -> np.ndarray:
    """The rows int64 of the suffixes among the vectors of a pack.

    `offsets` (K+1,): where each document begins; `prompts` (K,): the lengths of their prompts;
    `of_documents`, `of_prompts`: which end in a suffix.
    """
    rows = [offsets[1:] - 1] if of_documents else []
    if of_prompts and prompts is not None:
        rows.append(offsets[:-1] + prompts - 1)
    return np.concatenate([np.empty(0, np.int64), *rows]).astype(np.int64)
