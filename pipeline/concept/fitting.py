"""The normaliser of a pack, fitted to its sentences."""

from pathlib import Path
from typing import Any

import numpy as np

from pipeline.concept.normaliser import fit
from pipeline.concept.pack import Fit, Manifest, normaliser_file, read_arrays
from pipeline.concept.prompts import read_prompts
from pipeline.concept.suffixes import suffix_rows

FIT_SENTENCES = 200_000  # most sentences, evenly spaced, that a normaliser is fitted to


def make_normaliser(folder: Path, scale: Any) -> None:
    """Fit the normaliser of a pack to its sentences, suffixes aside, and write it beside them."""
    manifest = Manifest.read(folder / "manifest.json")
    vectors, offsets = read_arrays(folder, manifest)
    prompts = read_prompts(folder, offsets) if manifest.sha256.prompts else None
    given = manifest.has_suffix, manifest.has_prompt_suffix
    rows = fitted_rows(len(vectors), suffix_rows(offsets, prompts, *given))
    normaliser = fit(vectors[rows], scale)
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
