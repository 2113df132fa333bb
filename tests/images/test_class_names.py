"""Class names of sets that number their classes: the set's own, ImageNet's, or numbers."""

import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.base.errors import UserError
from pipeline.images.sources.class_names import name_classes, proper_names
from pipeline.images.sources.parquet import open_parquet
from pipeline.images.sources.synsets import sorted_synsets
from pipeline.images.sources.webdataset import open_webdataset
from tests import image_sets

FISH, FOX = "n01440764", "n02119789"  # labels 0 and 278
FOODS = [f"food {k}" for k in range(278)] + ["apple/pie"]


def write_table(
    place: Path, names: list[str] | None, path: str = "{}.jpg", last: int = 278
) -> Path:
    """Three images of labels 0, 0 and `last`; `names` in the metadata as datasets writes them."""
    images = [{"bytes": b"a", "path": path.format(k)} for k in range(3)]
    type_of_image = image_sets.HUB_SCHEMA.field("image").type
    table = image_sets.hub_table(
        image=pa.array(images, type_of_image), label=pa.array([0, 0, last])
    )
    if names is not None:
        features = {"label": {"names": names, "_type": "ClassLabel"}}
        about = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": about})
    pq.write_table(table, place)
    return place


def of_parquet(root: Path, *args: object) -> list[str] | None:
    place = write_table(root / "train.parquet", *args)  # type: ignore[arg-type]
    source = open_parquet(root, [place])
    names = {item.name.partition("/")[0] for part in source.stretches() for item in part.items}
    assert sorted(names) == source.classes
    return source.classes


def test_names_in_the_metadata(tmp_path: Path) -> None:
    assert of_parquet(tmp_path, FOODS) == ["apple_pie", "food 0"]


def test_without_names_classes_are_numbers(tmp_path: Path) -> None:
    assert of_parquet(tmp_path, None) == ["class0000", "class0278"]
    files = [("a.jpg", b"a"), ("a.cls", b"0"), ("b.jpg", b"b"), ("b.cls", b"278")]
    shard = image_sets.make_tar(tmp_path / "train-0.tar", files)
    assert open_webdataset(tmp_path, [shard]).classes == ["class0000", "class0278"]


def test_file_names_confirm_synsets(tmp_path: Path) -> None:
    for names in (None, ["tench, Tinca tinca", *FOODS[1:]]):
        assert of_parquet(tmp_path, names, FISH + "_{}.jpg", 0) == [FISH]
    files = [(f"{FISH}_1.jpg", b"a"), (f"{FISH}_1.cls", b"0"), ("b.jpg", b"b"), ("b.cls", b"278")]
    shard = image_sets.make_tar(tmp_path / "train-0.tar", files)
    assert open_webdataset(tmp_path, [shard]).classes == [FISH, FOX]


def test_a_part_of_imagenet_that_numbers_its_classes_itself(tmp_path: Path) -> None:
    assert of_parquet(tmp_path, ["red fox", "tench"], FOX + "_{}.jpg", 1) == ["red fox", "tench"]


def test_all_labels_of_imagenet() -> None:
    labels: Counter[int | None] = Counter(range(1000))
    assert name_classes(labels, []).names == sorted_synsets()
    foods = [f"food {k}" for k in range(1000)]
    assert name_classes(labels, [], foods).names == foods
    hub = ["tench, Tinca tinca", *foods[1:-1], "toilet tissue, toilet paper, bathroom tissue"]
    assert name_classes(labels, [], hub).names == sorted_synsets()
    del labels[999]
    assert name_classes(labels, []).names[:2] == ["class0000", "class0001"]


def test_labels_without_a_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has the label 278, which is not in 0…1"):
        of_parquet(tmp_path, ["a", "b"])


def test_names_that_do_not_tell_classes_apart(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="several labels the class name 'a_b'"):
        proper_names(["a/b", "c", "a_b"], tmp_path)
    shards = [write_table(tmp_path / f"{k}.parquet", [str(k), "b"], last=1) for k in range(2)]
    with pytest.raises(UserError, match="name their classes differently"):
        open_parquet(tmp_path, shards)


@pytest.mark.parametrize("about", [b"", b"{", b"[]", b'{"info": null}'])
def test_other_metadata_name_nothing(tmp_path: Path, about: bytes) -> None:
    table = image_sets.hub_table().replace_schema_metadata({"huggingface": about})
    pq.write_table(table, tmp_path / "a.parquet")
    assert open_parquet(tmp_path, [tmp_path / "a.parquet"]).classes == ["class0000", "class0278"]
