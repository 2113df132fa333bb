"""Documents that arrive file by file -> a pack in its folder, resumed after any kind of end.

Vectors are appended to one file, sentences to another; when a file of the source is finished, a
line of the journal says how long its documents are. What lies beyond the last line is cut off by
the next run. The manifest is written last, and moves last.
"""

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from pipeline.base.errors import UserError
from pipeline.base.files import disk_error, remove_spent
from pipeline.base.npy import save_npy, sha256_npy, write_header
from pipeline.concept.pack import TEXTS, Hashes
from pipeline.concept.prompts import FILE as PROMPTS

HEADER_BYTES = 128  # of the header of vectors.npy, for any number of vectors
FLOAT = "<f4"


class Document(NamedTuple):
    """Vectors float32 (n,D) and, if they are known, as many sentences; None: one without text.

    Of a pair, the first `prompt` sentences are its prompt; None: it is not a pair.
    """

    vectors: np.ndarray
    sentences: list[str | None] | None
    prompt: int | None = None


class Spool:
    """A pack in the making, in `.making` inside its folder."""

    def __init__(self, folder: Path, dimension: int, header: dict[str, object]) -> None:
        """Go on from finished files, unless `header`, all that vectors depend on, was another."""
        self.folder, self.dimension = folder, dimension
        self.journal, self.file = folder / "journal.jsonl", folder / "vectors.npy"
        self.texts = folder / TEXTS
        self.finished: dict[str, list[int]] = {}  # lengths of the documents of each finished file
        self.prompts: dict[str, list[int]] = {}  # of each of them that holds pairs
        self.text_bytes = 0  # of the sentences of all of them
        lines = list(read_lines(self.journal))
        if lines[:1] != [header] or not self.file.exists():
            self.file.write_bytes(bytes(HEADER_BYTES))
            self.texts.unlink(missing_ok=True)
            self.journal.write_text(json.dumps(header) + "\n")
        else:
            self.finished = {line["file"]: line["lengths"] for line in lines[1:]}
            self.prompts = {x["file"]: x["prompts"] for x in lines[1:] if "prompts" in x}
            self.text_bytes = sum(line["text_bytes"] for line in lines[1:])
            cut_after(self.journal, 1 + len(self.finished))
        os.truncate(self.file, self.end)
        if self.texts.exists():
            os.truncate(self.texts, self.text_bytes)

    @property
    def num_sentences(self) -> int:
        """Sentences of all finished files of the source."""
        return sum(map(sum, self.finished.values()))

    @property
    def end(self) -> int:
        """Bytes of the file of vectors up to the end of the last finished file of the source."""
        return HEADER_BYTES + self.num_sentences * self.dimension * np.dtype(FLOAT).itemsize

    def add(self, name: str, documents: Iterator[Document]) -> None:
        """Append the documents of a file of the source."""
        lengths, prompts, text_bytes = [], [], 0
        try:
            with self.file.open("r+b") as stream:
                stream.seek(self.end)
                for vectors, sentences, prompt in documents:
                    stream.write(np.ascontiguousarray(vectors, FLOAT).data)
                    text_bytes += self.add_texts(sentences)
                    lengths.append(len(vectors))
                    prompts += [] if prompt is None else [prompt]
                flush(stream)
            if text_bytes:
                with self.texts.open("ab") as stream:
                    flush(stream)
            line = {"file": name, "lengths": lengths, "text_bytes": text_bytes}
            line |= {"prompts": prompts} if prompts else {}
            with self.journal.open("a") as journal:
                journal.write(json.dumps(line) + "\n")
                flush(journal)
        except OSError as error:
            raise disk_error(error, self.file) from error
        self.finished[name] = lengths
        self.prompts |= {name: prompts} if prompts else {}
        self.text_bytes += text_bytes

    def add_texts(self, sentences: list[str | None] | None) -> int:
        """Append the sentences of a document, one a line; the number of bytes."""
        if sentences is None:
            return 0
        with self.texts.open("ab") as stream:
            return stream.write("".join(json.dumps(text) + "\n" for text in sentences).encode())

    def arrays(self, names: list[str]) -> tuple[np.ndarray, Hashes]:
        """Offsets (K+1,) int64 of all documents, once the files `names` are finished in this order;
        and the hashes of the arrays, which are complete now.
        """
        assert names == [*self.finished]
        lengths = [length for name in names for length in self.finished[name]]
        offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)
        with self.file.open("r+b") as stream:
            write_header(stream, (int(offsets[-1]), self.dimension), FLOAT)
            assert stream.tell() == HEADER_BYTES
            flush(stream)
        save_npy(self.folder / "offsets.npy", offsets)
        parts = ["vectors", "offsets"]
        if self.prompts:
            prompts = [prompt for part in self.prompts.values() for prompt in part]
            save_npy(self.folder / PROMPTS, np.array(prompts, np.int64))
            parts.append("prompts")
        return offsets, Hashes(**{part: sha256_npy(self.folder / f"{part}.npy") for part in parts})


def joined(prompt: Document, target: Document, where: str) -> Document:
    """A pair as one document; raises UserError, which begins with `where`, if either is empty."""
    for name, part in (("prompt", prompt), ("target", target)):
        if not len(part.vectors):
            raise UserError(f"{where}: a {name} without a sentence: leave this document out")
    return Document(
        np.concatenate([prompt.vectors, target.vectors]),
        [*(prompt.sentences or []), *(target.sentences or [])],
        len(prompt.vectors),
    )


def read_lines(path: Path) -> Iterator[Any]:
    """The whole lines of a journal; none if it does not exist."""
    with suppress(FileNotFoundError, ValueError):  # a line that was cut off ends it
        for line in path.read_text().splitlines():
            yield json.loads(line)


def cut_after(path: Path, num_lines: int) -> None:
    """Keep the first lines of a file alone."""
    lines = path.read_text().splitlines(keepends=True)[:num_lines]
    path.write_text("".join(lines))


def flush(stream: IO[Any]) -> None:
    """Have what was written on the disk."""
    stream.flush()
    os.fsync(stream.fileno())


def move_into_place(making: Path, folder: Path) -> None:
    """Move a pack whose manifest is written from `making` into `folder`, the manifest last.

    May be called again after any kind of end, and then does the rest. The pack stays as it is if
    another process has moved it.
    """
    if (making / "manifest.json").exists():
        if (making / "vectors.npy").exists():
            (folder / "manifest.json").unlink(missing_ok=True)
            for name in (TEXTS, PROMPTS):
                (folder / name).unlink(missing_ok=True)
        # vectors first: once they are gone, the texts in the folder are those of this pack
        for name in ("vectors.npy", "offsets.npy", PROMPTS, TEXTS, "manifest.json"):
            if (making / name).exists():
                (making / name).replace(folder / name)
    remove_spent(making)
