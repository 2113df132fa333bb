"""Environment variables of a rule: the words of its `resources.env` in the Snakefile."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Variable:
    """One environment variable that a rule's jobs read."""

    name: str
    needed: bool  # else it is read only if it is set


def parse_variables(words: str) -> list[Variable]:
    """The variables of `IMAGENET_DIR TORCH_HOME?`, in which `?` marks those that are not needed."""
    return [Variable(word.rstrip("?"), not word.endswith("?")) for word in words.split()]
