"""A pack of documents on disk: sentence vectors one after the other, and where each one begins.

vectors.npy     float32 (sentences, dimension)
offsets.npy     int64 (documents + 1): document k is rows offsets[k] … offsets[k + 1]
prompts.npy     int64 (documents), of pairs alone: so many first sentences of each are its prompt
sentences.jsonl  their texts, a JSON string a line, null of a suffix; not there if they have none
manifest.json   the record, and how the pack was made
normaliser-<scale>.npz, .json   center and scale of each dimension, and what they were fitted to
"""

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from pipeline.base.errors import UserError
from pipeline.base.json_objects import JsonObject
from pipeline.base.npy import load_npy, sha256_npy
from pipeline.concept.normaliser import Normaliser
from pipeline.concept.prompts import check_pairs, read_prompts
from pipeline.config.schema import Config
from pipeline.data.pack import Listing

TEXTS = "sentences.jsonl"
HASHED = 10**9  # bytes: up to this size vectors are hashed at each start
REMEDY = "run `python -m pipeline.prepare`"


class Hashes(JsonObject):
    """Hex sha256 of the arrays of a pack, without their .npy headers."""

    vectors: str
    offsets: str
    prompts: str | None = None  # of pairs alone


class Record(JsonObject):
    """Everything about a pack that training depends on."""

    KIND: ClassVar[str] = "a record of documents"
    REMEDY: ClassVar[str] = f"delete it and {REMEDY}"

    name: str  # concept.name
    dimension: int
    num_documents: int
    num_sentences: int  # suffixes included
    has_suffix: bool  # whether each document ends in the same vector
    has_prompt_suffix: bool = False  # whether each prompt does
    sha256: Hashes


class Manifest(Record):
    """The manifest of a pack: its record, and how it was made."""

    KIND: ClassVar[str] = "a manifest of documents"

    config: dict[str, object]  # the keys that `prepare` read
    suffix_sha256: str | None  # of the file of the suffix
    prompt_suffix_sha256: str | None = None  # of that of the prompts
    versions: dict[str, str]
    listing: Listing | None = None  # of its files; None: made here, or by an earlier version


class Fit(JsonObject):
    """The vectors that a normaliser was fitted to."""

    KIND: ClassVar[str] = "a record of a normaliser"
    REMEDY: ClassVar[str] = f"delete it and {REMEDY}"

    sha256: str  # of center and scale
    vectors: str  # hex sha256 of the pack's
    num_sentences: int  # 0: it was given
    constant: list[int]  # dimensions without a spread, which are centered alone


@dataclass(frozen=True)
class Documents:
    """Vectors float32 (N,D) and offsets int64 (K+1,), memory-mapped; record and normaliser.

    Of pairs also the lengths int64 (K,) of their prompts.
    """

    vectors: np.ndarray
    offsets: np.ndarray
    record: Record
    normaliser: Normaliser
    prompts: np.ndarray | None = None

    @property
    def about(self) -> dict[str, object]:
        """The record as JSON, with the hash of the normaliser among those of the arrays."""
        sha256 = {**self.record.sha256.to_json(), "normaliser": self.normaliser.sha256}
        return self.record.to_json() | {"sha256": sha256}


def pack_folder(config: Config) -> Path:
    """data.path, else `<data.pack_dir>/<concept.name>`; raises UserError if neither is given."""
    assert config.concept is not None
    if config.data.path:
        return Path(config.data.path)
    if config.data.pack_dir is None:
        raise UserError(
            "data.pack_dir is not set: give the folder of the packs, data.pack_dir=results/packs, "
            "or one pack, data.path=FOLDER"
        )
    return Path(config.data.pack_dir) / config.concept.name


def normaliser_file(folder: Path, scale: str) -> Path:
    """The normaliser of a pack; its record lies beside it as .json."""
    return folder / f"normaliser-{scale}.npz"


def read_texts(folder: Path, rows: Collection[int]) -> dict[int, str | None] | None:
    """The texts of some rows of the vectors, None of a suffix; None if the pack has no texts.

    Raises UserError if they are damaged.
    """
    path = folder / TEXTS
    if not path.exists():
        return None
    texts = {}
    with path.open() as stream:
        for row, line in enumerate(stream):
            if row in rows:
                texts[row] = read_text(line, path)
            if len(texts) == len(rows):
                break
    if len(texts) < len(rows):
        raise UserError(
            f"{path} has fewer lines than the pack has vectors: delete the pack and {REMEDY}"
        )
    return texts


def read_text(line: str, path: Path) -> str | None:
    """The text of a line of the file at `path`; raises UserError if it is damaged."""
    try:
        text: str | None = json.loads(line)
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): delete the pack and {REMEDY}") from error
    return text


def read_arrays(folder: Path, record: Record) -> tuple[np.ndarray, np.ndarray]:
    """Vectors and offsets, memory-mapped; raises UserError if they are not as the record says."""
    try:
        vectors, offsets = load_npy(folder / "vectors.npy"), load_npy(folder / "offsets.npy")
    except UserError as error:  # without its arrays a manifest alone would stay as it is
        raise UserError(
            f"pack {folder} is damaged ({str(error).partition(': ')[0]}): delete it and {REMEDY}"
        ) from error
    fits = vectors.shape == (record.num_sentences, record.dimension)
    fits &= vectors.dtype == np.float32
    fits &= offsets.shape == (record.num_documents + 1,)
    if not fits or offsets[0] != 0 or offsets[-1] != len(vectors) or (np.diff(offsets) < 0).any():
        raise UserError(
            f"pack {folder} is damaged (not as its manifest says): delete it and {REMEDY}"
        )
    return vectors, offsets


def open_documents(config: Config) -> Documents:
    """The pack of a configuration with its normaliser.

    Raises UserError if either is missing or damaged, or is of other vectors than the keys say.
    """
    # The pack
    assert config.concept is not None
    folder = pack_folder(config)
    if not (folder / "manifest.json").exists():
        raise UserError(f"pack {folder} is missing: {REMEDY} with the same words")
    record = Record.read(folder / "manifest.json")
    if record.dimension != config.concept.dimension:
        raise UserError(
            f"pack {folder} has vectors of {record.dimension} numbers, "
            f"concept.dimension={config.concept.dimension}: give the pack's, or another pack"
        )
    vectors, offsets = read_arrays(folder, record)
    prompts = read_prompts(folder, offsets) if record.sha256.prompts else None
    check_pairs(folder, config.concept, offsets, prompts)

    # Its normaliser
    file = normaliser_file(folder, config.concept.scale)
    normaliser, fit = Normaliser.read(file), Fit.read(file.with_suffix(".json"))
    if fit.vectors != record.sha256.vectors or fit.sha256 != normaliser.sha256:
        raise UserError(f"{file} is not of the pack beside it: delete it and {REMEDY}")
    return Documents(vectors, offsets, record, normaliser, prompts)


def check_record(documents: Documents, folder: Path, file: Path) -> None:
    """Raise UserError unless the record in `file` is of the documents that `folder` holds."""
    if Record.read(file).sha256 != documents.record.sha256:
        raise UserError(
            f"pack {folder} holds other documents than its record {file} says: {REMEDY} with "
            "out=FILE, or give the pack's record"
        )


def check_arrays(folder: Path, record: Record) -> None:
    """Raise UserError if the arrays in `folder` are not those of the record.

    Vectors of more than HASHED bytes are not hashed: that would take minutes at each start.
    """
    for name in record.sha256.to_json():
        file = folder / f"{name}.npy"
        if file.stat().st_size <= HASHED and sha256_npy(file) != getattr(record.sha256, name):
            raise UserError(
                f"{file} has changed since it was written (its sha256 is not the manifest's): "
                f"delete the pack and {REMEDY}"
            )
