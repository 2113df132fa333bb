"""Values that all ranks of a job must share, and the sentence if they do not."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

DIGITS = 12  # of a hash, in messages


def flat(tree: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """{"a.b": value} of {"a": {"b": value}}, in the order of the tree."""
    values: dict[str, object] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            values |= flat(value, f"{prefix}{key}.")
        else:
            values[f"{prefix}{key}"] = value
    return values


def disagreement(identities: Sequence[Mapping[str, object]]) -> str:
    """A sentence about the first rank whose values differ from those of rank 0; empty if none does.

    `identities`: nested values of each rank, in their order. A key that one of two ranks does not
    name is not compared.
    """
    first, *later = [flat(identity) for identity in identities]
    for rank, values in enumerate(later, 1):
        common = [key for key in first if key in values]
        keys = [key for key in common if json.dumps(values[key]) != json.dumps(first[key])]
        if keys:
            more = f" (and differs in {', '.join(keys[1:])})" if keys[1:] else ""
            return (
                f"rank {rank} has {keys[0]}={shown(values[keys[0]])} but rank 0 has "
                f"{keys[0]}={shown(first[keys[0]])}{more}: start all ranks with the same keys, "
                "data and code"
            )
    return ""


def shown(value: Any) -> str:
    """A value as people write it; of a hash the first digits."""
    text = value if isinstance(value, str) else json.dumps(value)
    return f"{text[:DIGITS]}…" if re.fullmatch(r"[0-9a-f]{64}", text) else text
