"""Records and manifests of packs: typed, and on disk as they always were."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.base.errors import UserError
from pipeline.base.files import sha256_json, write_json
from pipeline.data.pack import (
    UNEVEN,
    DataAbout,
    Hashes,
    Manifest,
    Record,
    balance_note,
    imbalance,
)

RECORD: dict[str, Any] = {
    "source": "train",
    "resolution": 64,
    "recipe": "box",
    "num_images": 3,
    "classes": ["b", "a"],
    "per_class": {"b": 1, "a": 2},
    "sha256": {"images": "12", "labels": "34"},
}
MANIFEST = RECORD | {
    "config": {"data": {"resolution": 64}},
    "kind": "folders",
    "counts": {"grey": 1},
    "ignored": 2,
    "left_out": [{"name": "a/x.png", "reason": "cut short"}],
    "versions": {"pillow": "12.0"},
}


@pytest.mark.parametrize(("kind", "content"), [(Record, RECORD), (Manifest, MANIFEST)])
def test_a_file_that_is_read_and_written_keeps_its_bytes(
    kind: type[Record], content: dict[str, Any], tmp_path: Path
) -> None:
    write_json(tmp_path / "old.json", content)
    kind.read(tmp_path / "old.json").write(tmp_path / "new.json")
    assert (tmp_path / "new.json").read_bytes() == (tmp_path / "old.json").read_bytes()


def test_old_files_without_counts_per_class_stay_so() -> None:
    old = {key: value for key, value in RECORD.items() if key != "per_class"}
    record = Record.parse(old, "record")
    assert record.per_class is None and record.to_json() == old


def test_the_record_is_in_the_manifest_and_the_data_in_the_record() -> None:
    manifest = Manifest.parse(MANIFEST, "manifest")
    assert Record.of(manifest).to_json() == RECORD
    about = DataAbout.of(manifest)
    assert about.to_json() == {k: v for k, v in RECORD.items() if k != "num_images"}
    assert about.name == "train_64-box"
    assert sha256_json(about.sha256 and about.sha256.to_json()) == sha256_json(RECORD["sha256"])


def test_imported_weights_may_not_name_their_pack() -> None:
    about = DataAbout(source="unknown", resolution=8, recipe="unknown", classes=[], sha256=None)
    assert about.to_json()["sha256"] is None and "per_class" not in about.to_json()
    assert DataAbout.parse(json.loads(json.dumps(about.to_json())), "weights") == about


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([], "the whole: input should be a valid dictionary"),
        (RECORD | {"resolution": "64"}, "resolution: input should be a valid integer"),
        (RECORD | {"sha256": {"images": "12"}}, "sha256.labels: field required"),
        (RECORD | {"sha256": None}, "sha256: input should be a valid dictionary"),
        (RECORD | {"classes": [1]}, "classes.0: input should be a valid string"),
    ],
)
def test_another_file_is_refused_in_one_sentence(content: Any, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    write_json(path, content)
    with pytest.raises(UserError) as caught:
        Record.read(path)
    message = str(caught.value)
    assert message.startswith(f"{path} is not a pack's record ({reason}")
    assert message.endswith("or delete it and run `make data`") and "\n" not in message


def test_records_are_immutable() -> None:
    hashes = Hashes(images="12", labels="34")
    with pytest.raises(ValueError, match="frozen"):
        hashes.images = "56"


def test_imbalance_of_classes() -> None:
    assert imbalance([5, 5, 5]) == 0 and imbalance([7]) == 0
    assert imbalance([190, 10]) == pytest.approx(0.45)
    imagenet = [1300] * 895 + [1120, 1121] * 52 + [1121]  # about as its classes are
    assert imbalance(imagenet) < UNEVEN / 3 and balance_note(imagenet) == ""
    assert "45% of the pack's images" in balance_note([190, 10])
