"""Numbers that YAML 1.1 reads otherwise than they are meant: one sentence each."""

import re
from pathlib import Path

import pytest

from pipeline.base.errors import UserError
from pipeline.config.load import load_step, load_yaml
from pipeline.config.reading import read_values


@pytest.mark.parametrize("value", ["010", "-010", "0_64", "1:30:00", "1:30.5", "[1, 064]"])
def test_numbers_in_base_8_or_60_are_refused(value: str, tmp_path: Path) -> None:
    said = re.escape(f"={value.strip('[1, ]') if '[' in value else value} is not valid: YAML takes")
    said += ".* write it without them, or a name in quotes$"
    with pytest.raises(UserError, match=f"^data.resolution{said}"):
        load_step(["experiment=smoke", f"data.resolution={value}"], ())
    file = tmp_path / "own.yaml"
    file.write_text(f"experiments: {{mine: {{data: {{resolution: {value}}}}}}}")
    with pytest.raises(UserError, match=f"^data.resolution{said}"):
        load_yaml(file)


@pytest.mark.parametrize(
    ("key", "value", "meant"),
    [
        ("train.lr", "0.5", 0.5),
        ("train.images", "0", 0),
        ("train.images", "1_000", 1000),
        ("train.images", "0x10", 16),
        ("experiment", "010", "010"),
        ("launch.rdzv_endpoint", "12:30", "12:30"),
        ("sample.classes", "['010']", ["010"]),
    ],
)
def test_other_numbers_and_text_are_read(key: str, value: str, meant: object) -> None:
    assert read_values(value, key) == meant


@pytest.mark.parametrize(("typed", "written"), [("1e6", "1_000_000"), ("1.5e3", "1_500")])
def test_a_power_of_ten_is_written_out(typed: str, written: str) -> None:
    said = f"train.images='{typed}' is not valid: write {written}"
    with pytest.raises(UserError, match=f"^{re.escape(said)}$"):
        load_step(["experiment=smoke", f"train.images={typed}"], ())


@pytest.mark.parametrize("typed", ["inf1", "1e400", "1.5", "0o10"])
def test_what_is_not_a_whole_number_is_not_written_out(typed: str) -> None:
    with pytest.raises(UserError, match=r"^train.images=.* is not valid: expected") as caught:
        load_step(["experiment=smoke", f"train.images={typed}"], ())
    assert "write" not in str(caught.value)


@pytest.mark.parametrize(
    ("word", "key"), [("runtime.gpus=4", "runtime.gpus.train"), ("train=3", "train.start")]
)
def test_a_value_of_a_section_is_answered_with_a_key(word: str, key: str) -> None:
    said = f"{word} is not valid: expected keys of this section, such as {key}"
    with pytest.raises(UserError, match=f"^{re.escape(said)}$"):
        load_step(["experiment=smoke", word], ())
