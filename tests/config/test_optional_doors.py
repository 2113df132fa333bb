"""Keys of sections that a configuration need not have read alike through every door, too."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.config import load
from pipeline.config.messages import known_keys
from pipeline.config.schema import Config
from pipeline.config.words import lookup
from tests.config.test_doors import OF_LCM, outcome, read_values

# Words that make a section valid, by the beginning of its keys
CHOICES = {
    "sample.guide.": ["experiment=tiny", "sample.guide.experiment=tiny"],
    "select.": ["experiment=tiny", "select.guidance=[1,2]"],
    "concept.": ["experiment=lcm_two_tower_smoke"],
    "model.": ["experiment=lcm_two_tower_smoke"],
}
LATER = ("sample.guide.", "select.", "concept.")
KEYS = [key for key in known_keys() if key.startswith(LATER) or key in OF_LCM]
TEXTS = ["null", "true", "007", "0.5"]
# Values of keys that have none of those
VALID = {
    "sample.guide.experiment": "smoke",
    "concept.source": "text",
    "concept.scale": "lcm_tails",
    "model.positions": "learned",
    "model.norm": "layer",
    "model.mlp": "relu",
    "select.seeds": "[3, 4]",
    "select.search": "grid",
    "select.ema_widths": "null",
    "select.guidance": "[1, 3]",
    "select.intervals": "[[0.2, 0.8]]",
}


def through_words(words: list[str]) -> Config:
    """By a step's words."""
    return load.load_step(words, ("out",), {})[0]


def through_config(words: list[str]) -> Config:
    """By words `section={key: value}` of --config."""
    return load.resolve(*read_values([load.DEFAULT_FILE], map(section, words)), {})


def section(word: str) -> str:
    """`a={b: value}` of `a.b=value`."""
    key, _, text = word.partition("=")
    head, *rest = key.split(".")
    for part in reversed(rest):
        text = f"{{{part}: {text}}}"
    return f"{head}={text}"


def through_set(words: list[str]) -> Config:
    """By make's SET."""
    given = [words[0], f"set=['{' '.join(words[1:])}']"]
    return load.resolve(*read_values([load.DEFAULT_FILE], given), {})


def through_files(words: list[str], folder: Path) -> Config:
    """By a --configfile with keys of the experiment, each word in a file of its own."""
    files = [load.DEFAULT_FILE]
    experiment = words[0].partition("=")[2]
    for number, word in enumerate(words[1:]):
        key, _, text = word.partition("=")
        parts = ["experiments", experiment, *key.split(".")]
        lines = ["  " * depth + f"{part}:" for depth, part in enumerate(parts)]
        files.append(folder / f"{number}.yaml")
        files[-1].write_text("\n".join(lines) + f" {text}\n")
    return load.resolve(*read_values(files, words[:1]), {})


@pytest.mark.parametrize("key", KEYS)
def test_every_optional_key_reads_alike_through_every_door(key: str, tmp_path: Path) -> None:
    chosen = next(words for begin, words in CHOICES.items() if key.startswith(begin))
    taken: list[Any] = []
    for text in [*TEXTS, VALID.get(key, "7")]:
        words = [*chosen, f"{key}={text}"]
        by_word = outcome(through_words, words)
        assert outcome(through_config, words) == by_word
        assert outcome(through_set, words) == by_word
        assert outcome(through_files, words, tmp_path) == by_word
        taken += [lookup(by_word.model_dump(), key)] if isinstance(by_word, Config) else []
    assert taken
