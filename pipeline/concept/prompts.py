"""Pairs of a prompt and a target: how many first sentences of each document are its prompt."""

from pathlib import Path

import numpy as np

from pipeline.base.errors import UserError
from pipeline.base.npy import load_npy
from pipeline.config.concept_keys import Concept

FILE = "prompts.npy"
REMEDY = "delete the pack and run `python -m pipeline.prepare`"


def read_prompts(folder: Path, offsets: np.ndarray) -> np.ndarray:
    """The lengths (K,) int64 of the prompts of a pack in `folder`, memory-mapped.

    `offsets` (K+1,) int64: where each document begins. Raises UserError if they are missing or of
    another type or number, or unless each document has a prompt, and a sentence after it.
    """
    file, num = folder / FILE, len(offsets) - 1
    try:
        prompts = load_npy(file)
    except UserError as error:
        raise UserError(f"{error}; else {REMEDY}") from error
    if prompts.dtype != np.int64 or prompts.shape != (num,):
        raise UserError(
            f"{file} is {prompts.dtype} of shape {prompts.shape}, not int64 ({num},), a number for "
            f"each document: {REMEDY}"
        )
    lengths = np.diff(offsets)
    wrong = np.flatnonzero((prompts < 1) | (prompts >= lengths))
    if len(wrong):
        first = int(wrong[0])
        raise UserError(
            f"{file} says that {prompts[first]} sentences of document {first} are its prompt, but "
            f"it has {lengths[first]}, of which at least one must be in the prompt and one after "
            f"it ({len(wrong):,} such documents): {REMEDY}"
        )
    return prompts


def check_pairs(
    folder: Path, keys: Concept, offsets: np.ndarray, prompts: np.ndarray | None
) -> None:
    """Raise UserError unless a pack holds pairs if the keys say so, none too long, and else none.

    `prompts` (K,): the lengths of its prompts; None: it holds no pairs.
    """
    if keys.pairs != (prompts is not None):
        holds, other = ("pairs", "true") if prompts is not None else ("no pairs", "false")
        raise UserError(
            f"pack {folder} holds {holds}, but concept.pairs={str(keys.pairs).lower()}: give "
            f"concept.pairs={other}, or another pack"
        )
    longest = int(np.diff(offsets).max(initial=0))
    if keys.pairs and longest > keys.max_sentences:
        raise UserError(
            f"pack {folder} has a pair of {longest} sentences, and a pair is not cut: give "
            f"concept.max_sentences={longest} instead of {keys.max_sentences}, or leave such pairs "
            "out of the documents"
        )
