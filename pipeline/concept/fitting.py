"""The normaliser of a pack: fitted to its sentences, or taken from the weights in train.start."""

from pathlib import Path
from typing import Any

import numpy as np

from pipeline.base.errors import UserError
from pipeline.concept.normaliser import Normaliser, fit
from pipeline.concept.pack import Fit, Manifest, normaliser_file, read_arrays
from pipeline.concept.prompts import read_prompts
from pipeline.concept.suffixes import suffix_rows
from pipeline.config.schema import Config
from pipeline.training import start_weights

FIT_SENTENCES = 200_000  # most sentences, evenly spaced, that a normaliser is fitted to


def given_normaliser(config: Config, is_there: bool) -> Normaliser | None:
    """The normaliser of the weights in train.start; None unless concept.scale=start.

    `is_there`: it was taken before, and None if the weights are gone. Raises UserError if there is
    none to take.
    """
    keys, value = config.concept, config.train.start
    assert keys is not None
    if keys.scale != "start":
        return None
    path = None if value is None else start_weights.locate(value)
    if path is None:
        if is_there:
            return None
        raise UserError(
            f"concept.scale=start takes the normaliser of the weights in train.start={value}: give "
            "train.start=FILE, or another concept.scale"
        )
    return normaliser_of(path, keys.dimension)


def normaliser_of(path: Path, dimension: int) -> Normaliser:
    """The normaliser of weights; raises UserError if they have none, or of another dimension."""
    tensors = start_weights.read_tensors(path)
    if not {"center", "scale"} <= {*tensors}:
        raise UserError(
            f"train.start={path} has no normaliser: give weights of a training with "
            "workload=concept"
        )
    center, scale = (tensors[name].numpy() for name in ("center", "scale"))
    if center.shape != (dimension,):
        raise UserError(
            f"train.start={path} has a normaliser of {len(center)} dimensions, and "
            f"concept.dimension={dimension}: give weights for vectors of that dimension"
        )
    return Normaliser(center, scale)


def check_given(file: Path, given: Normaliser, config: Config) -> None:
    """Raise UserError unless the normaliser in a file is the one that is given."""
    if Normaliser.read(file).sha256 != given.sha256:
        raise UserError(
            f"{file} is the normaliser of other weights than those in train.start="
            f"{config.train.start}: give another concept.name, or delete it and run "
            "`python -m pipeline.prepare` again"
        )


def make_normaliser(folder: Path, scale: Any, given: Normaliser | None = None) -> None:
    """Write the normaliser of a pack beside it: the given one, or one that is fitted to it.

    It is fitted to the sentences, suffixes aside.
    """
    manifest = Manifest.read(folder / "manifest.json")
    vectors, offsets = read_arrays(folder, manifest)
    rows = np.empty(0, np.int64)
    if given is None:
        prompts = read_prompts(folder, offsets) if manifest.sha256.prompts else None
        ends = manifest.has_suffix, manifest.has_prompt_suffix
        rows = fitted_rows(len(vectors), suffix_rows(offsets, prompts, *ends))
    normaliser = given or fit(vectors[rows], scale)
    file = normaliser_file(folder, scale)
    normaliser.write(file)
    Fit(
        sha256=normaliser.sha256,
        vectors=manifest.sha256.vectors,
        num_sentences=len(rows),
        constant=list(normaliser.constant),
    ).write(file.with_suffix(".json"))
    if normaliser.constant:
        print(
            f"prepare: {len(normaliser.constant)} dimensions have no spread and are centered "
            f"alone: {', '.join(map(str, normaliser.constant[:16]))}"
            f"{', …' if len(normaliser.constant) > 16 else ''}",
            flush=True,
        )


def fitted_rows(num: int, suffixes: np.ndarray) -> np.ndarray:
    """Rows that a normaliser is fitted to: of `num`, at most FIT_SENTENCES, evenly spaced.

    Those of `suffixes` are not among them, unless there are no others.
    """
    rows = np.arange(num)
    sentences = np.delete(rows, suffixes)
    rows = sentences if len(sentences) else rows
    return rows[:: -(-len(rows) // FIT_SENTENCES)]
