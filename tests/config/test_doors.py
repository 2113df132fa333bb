"""Every key has the same value whatever the door it comes through: files, --config, SET, words."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.base.errors import UserError
from pipeline.config import load
from pipeline.config.messages import known_keys
from pipeline.config.model_keys import family_keys
from pipeline.config.reading import text_keys
from pipeline.config.schema import Config
from pipeline.config.words import lookup, parse_overrides
from pipeline.workflow.doors import check_repeats, check_targets, read_values

BASE = load.load_yaml(load.DEFAULT_FILE)
TOKENS = "model.kind=discrete_unet workload=discrete_flow sample.solver=jump"
OTHERS = {  # of one family alone, with the words that choose it
    "model.sigma_data": "model.kind=edm2",
    "model.uncertainty_channels": "model.kind=edm2",
    "model.values": TOKENS,
}
OF_LCM = [f"model.{k}" for k in family_keys("lcm_two_tower") if k not in family_keys("unet")]
KEYS = [k for k in known_keys() if k not in ("experiment", *OTHERS, *OF_LCM)]
KEYS = [
    k
    for k in KEYS
    if not k.startswith(("sample.guide.", "select.", "concept."))
    and not isinstance(lookup(BASE, k), dict)
]
TEXT = list(text_keys())
# Values of other types than their text: each is tried for the keys that can have it
VALUES = ["null", "true", "7", "0.5", "[0.25, 1]"]
ODD_TEXT = ["no", "1e3", "2024_01", "007", "a b", "it's", "$HOME", "#x;y"]


def of_words(*words: str) -> Config:
    """By a step's words."""
    return load.load_step(["experiment=tiny", *words], ("out",), {})[0]


def of_config(key: str, text: str) -> Config:
    """By Snakemake's `--config section={key: value}`."""
    head, *rest = key.split(".")
    for part in reversed(rest):
        text = f"{{{part}: {text}}}"
    values, words = read_values([load.DEFAULT_FILE], ["experiment=tiny", f"{head}={text}"])
    return load.resolve(values, words, {})


def of_file(key: str, text: str, folder: Path) -> Config:
    """By --configfile, as a key of the experiment."""
    parts = ["experiments", "tiny", *key.split(".")]  # over the keys of tiny
    lines = ["  " * depth + f"{part}:" for depth, part in enumerate(parts)]
    (folder / "more.yaml").write_text("\n".join(lines) + f" {text}\n")
    files = [load.DEFAULT_FILE, folder / "more.yaml"]
    return load.resolve(*read_values(files, ["experiment=tiny"]), {})


def of_set(key: str, text: str) -> Config:
    """By make's SET."""
    word = f"{key}={text}".replace("'", "''")
    files = [load.DEFAULT_FILE]
    return load.resolve(*read_values(files, ["experiment=tiny", f"set=['{word}']"]), {})


def outcome(door: Any, *arguments: Any) -> Any:
    """The configuration, or the sentence that refuses it."""
    try:
        return door(*arguments)
    except UserError as error:
        return str(error)


@pytest.mark.parametrize("key", KEYS)
def test_every_key_reads_alike_through_every_door(key: str, tmp_path: Path) -> None:
    now = json.dumps(lookup(BASE, key))
    taken = 0
    for text in [now, *VALUES]:
        by_word = outcome(of_words, f"{key}={text}")
        assert outcome(of_config, key, text) == by_word
        assert outcome(of_set, key, text) == by_word
        assert outcome(of_file, key, text, tmp_path) == by_word
        taken += isinstance(by_word, Config)
    assert taken


@pytest.mark.parametrize("key", OTHERS)
@pytest.mark.parametrize("text", [*VALUES, "16"])
def test_keys_of_another_family_read_alike(key: str, text: str) -> None:
    words = ["model.channels=96", *OTHERS[key].split(), f"{key}={text}"]
    by_word = outcome(of_words, *words)
    assert outcome(of_set, "model.channels", " ".join(words).partition("=")[2]) == by_word
    sections = [
        f"{name}={yaml.safe_dump(part, default_flow_style=True).removesuffix('...' + chr(10))}"
        for name, part in parse_overrides(words).items()
    ]
    values = read_values([load.DEFAULT_FILE], ["experiment=tiny", *sections])
    assert outcome(load.resolve, *values, {}) == by_word
    valid = {("7", "model.uncertainty_channels"), ("7", "model.sigma_data")}
    valid |= {("0.5", "model.sigma_data")} | {("16", key)}
    assert isinstance(by_word, Config) == ((text, key) in valid)


@pytest.mark.parametrize("key", TEXT)
@pytest.mark.parametrize("text", ODD_TEXT)
def test_text_is_taken_as_it_is_typed(key: str, text: str, tmp_path: Path) -> None:
    tree = {"experiments": {text: {"like": "tiny"}}} if key == "experiment" else {}
    if key in ("experiment", "concept.name") and set(text) & set(" '$#"):
        return  # names of folders: refused
    quoted = yaml.safe_dump(text, default_style='"').strip() if set(text) & set(" '#") else text
    (tmp_path / "names.yaml").write_text(yaml.safe_dump(tree))
    files = [load.DEFAULT_FILE, tmp_path / "names.yaml"]
    word = f"{key}={quoted}"
    values, words = read_values(files, ["experiment=tiny"] if key != "experiment" else [])
    by_set = load.resolve(values, {**words, "set": [word]})
    assert lookup(by_set.model_dump(), key) == text
    head, *rest = key.split(".")
    for part in reversed(rest):
        quoted = f"{{{part}: {quoted}}}"
    values, words = read_values(files, [f"{head}={quoted}"])
    experiment = {} if key == "experiment" else {"experiment": "tiny"}
    assert lookup(load.resolve(values, words | experiment).model_dump(), key) == text


@pytest.mark.parametrize(
    ("text", "classes"),
    [("[1, 5]", (1, 5)), ("[tench,'7']", ("tench", "7")), ("3", (3,)), ("histogram", "histogram")],
)
def test_chosen_classes_come_through_every_door(text: str, classes: Any, tmp_path: Path) -> None:
    key = "sample.classes"
    for config in (
        of_words(f"{key}={text}"),
        of_config(key, text),
        of_set(key, text),
        of_file(key, text, tmp_path),
        of_words(f"sample.runs=[{{classes: {text}}}]"),
    ):
        (sampler,) = config.sample.samplers
        assert sampler.classes == classes


def test_a_nested_null_is_null() -> None:
    assert of_config("train.clip_grad_norm", "null").train.clip_grad_norm is None


def test_text_within_runs_is_text_and_numbers_are_numbers() -> None:
    (one,) = of_words("sample.runs=[{guide: 12, steps: 3}]").sample.samplers
    assert (one.guide, one.steps) == ("12", 3)


@pytest.mark.parametrize("name", ["2024_01", "1e3", "no", "007", "null"])
def test_names_of_experiments_are_text(name: str, tmp_path: Path) -> None:
    for written in (name, f"'{name}'"):
        (tmp_path / "config.yaml").write_text(
            load.DEFAULT_FILE.read_text() + f"  {written}:\n    like: tiny\n"
        )
        file = [tmp_path / "config.yaml"]
        values, words = read_values(file, [f"experiment={name}"])
        assert load.resolve(values, words).experiment == name
        with pytest.raises(UserError, match="no experiment '9' in config.yaml"):
            load.resolve(*read_values(file, ["experiment=9"]))
        child = {"experiments": {"child": {"like": name}}, "experiment": "child"}
        assert load.resolve(values, child).train.batch == 32


def test_places_of_a_step_are_text_as_typed() -> None:
    assert load.load_step(["experiment=tiny", "out=007"], ("out",), {})[1] == {"out": "007"}
    assert load.load_step(["experiment=tiny", "out=no"], ("out",), {})[1] == {"out": "no"}


def test_words_that_snakemake_would_drop_are_refused() -> None:
    with pytest.raises(UserError, match="--config is given 2 times"):
        check_repeats(["--config", "experiment=tiny", "-C", "train={lr: 2e-4}"])
    with pytest.raises(UserError, match="--config is given 2 times"):
        check_repeats(["-Cexperiment=tiny", "-Ctrain={lr: 2e-4}"])
    with pytest.raises(UserError, match="--configfile is given 2 times"):
        check_repeats(["--configfile=a.yaml", "--configfiles", "b.yaml"])
    check_repeats(["--config", "a=1", "b=2", "--configfile", "a", "--resources", "gpu=1"])
    with pytest.raises(UserError, match="set is given twice"):
        read_values([], ["set=train.lr=1", "set=train.seed=2"])


def test_dotted_words_get_the_hint_at_set() -> None:
    hint = r"write --config \"set=\['train.lr=2e-4'\]\" \(or make SET='train.lr=2e-4'\)"
    with pytest.raises(UserError, match=hint):
        read_values([], ["experiment=tiny", "train.lr=2e-4"])
    with pytest.raises(UserError, match=hint):
        check_targets(["train.lr=2e-4"])
    check_targets(["all", "results/a=b/train/curve.jsonl"])


def test_sections_merge_over_words() -> None:
    words = ["train={lr: 2e-4}", "train={seed: 7}"]
    assert read_values([], words)[1] == {"train": {"lr": "2e-4", "seed": 7}}
