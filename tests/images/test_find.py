"""Which image set lies in a folder, how it is packaged, and what data.source=auto means."""

from importlib import import_module
from pathlib import Path
from typing import get_args

import pytest

from pipeline.base.errors import UserError
from pipeline.config.image_sets import MADE_SOURCES
from pipeline.config.load import load_step
from pipeline.config.paths import pack_folder
from pipeline.config.schema import Data
from pipeline.images.sources import find
from pipeline.images.sources.packagings import PACKAGINGS
from tests.conftest import resolved

PLACES = {
    "train": ("train", "folders"),
    "ILSVRC/Data/CLS-LOC/train": ("train", "folders"),
    "ILSVRC2012_img_train.tar": ("train", "tar"),
    "train-00000-of-00001.parquet": ("train", "parquet"),
    "data/train-00000-of-00001.parquet": ("train", "parquet"),
    "imagenet1k-train-0000.tar": ("train", "webdataset"),
    "train-000123.tar": ("train", "webdataset"),
    "train_data_batch_1": ("train", "batches"),
    "train_data_batch_1.npz": ("train", "batches"),
    "Imagenet64_train_part1/train_data_batch_1": ("train", "batches"),
    "train_blurred": ("train_blurred", "folders"),
    "train_blurred.tar.gz": ("train_blurred", "tar.gz"),
    "cifar-10-python.tar.gz": ("cifar10", "cifar"),
    "cifar-10-batches-py": ("cifar10", "cifar"),
}


def put(root: Path, place: str) -> Path:
    path = root / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir() if "." not in path.name and "batch_" not in path.name else path.touch()
    return path


@pytest.mark.parametrize("place", PLACES)
def test_each_place_is_found_and_named(tmp_path: Path, place: str) -> None:
    path = put(tmp_path, place)
    (found,) = find.image_sets(tmp_path, 64)
    assert (found.source, found.layout, found.paths) == (*PLACES[place], [path])
    config = resolved("data.resolution=64", environment={"IMAGENET_DIR": str(tmp_path)})
    assert config.data.source == found.source
    assert find.choose(tmp_path, found.source, "auto", 64) == found


def test_batches_of_another_size_are_not_taken(tmp_path: Path) -> None:
    put(tmp_path, "Imagenet32_train/train_data_batch_1")
    wanted = put(tmp_path, "Imagenet64_train_part1/train_data_batch_1")
    more = put(tmp_path, "Imagenet64_train_part2/train_data_batch_6")
    assert find.choose(tmp_path, "train", "auto", 64).paths == [wanted, more]


def test_several_packagings_are_listed(tmp_path: Path) -> None:
    for place in ("train", "ILSVRC2012_img_train.tar", "imagenet1k-train-0000.tar"):
        put(tmp_path, place)
    with pytest.raises(
        UserError, match=r"layout=folders.*layout=tar.*layout=webdataset.*data\.lay"
    ):
        find.choose(tmp_path, "train", "auto", 64)
    assert find.choose(tmp_path, "train", "tar", 64).layout == "tar"


def test_several_image_sets_are_listed(tmp_path: Path) -> None:
    put(tmp_path, "train")
    put(tmp_path, "train_blurred.tar.gz")
    environment = {"IMAGENET_DIR": str(tmp_path)}
    with pytest.raises(UserError, match=r"data\.source=train .*data\.source=train_blurred"):
        resolved(environment=environment)
    assert resolved("data.source=train", environment=environment).data.source == "train"


def test_only_the_step_after_parsing_looks_at_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, "train")
    put(tmp_path, "train_blurred.tar.gz")
    monkeypatch.setenv("IMAGENET_DIR", str(tmp_path))
    config, _ = load_step([], ())
    assert config.data.source == "auto"
    with pytest.raises(UserError, match="holds several image sets"):
        find.resolve_image_set(config)
    named, _ = load_step(["data.source=train_blurred"], ())
    assert find.resolve_image_set(named) is named


def test_the_pack_that_is_named_tells_its_image_set(tmp_path: Path) -> None:
    put(tmp_path, "train")
    (tmp_path / "manifest.json").write_text('{"source": "cifar10"}')
    config, _ = load_step([f"data.path={tmp_path}", f"data.dir={tmp_path}"], ())
    assert find.resolve_image_set(config, {}).data.source == "cifar10"
    (tmp_path / "manifest.json").write_text('{"source": "unknown"}')
    with pytest.raises(UserError, match="data.source='unknown' is not valid: use one of"):
        find.resolve_image_set(config, {})


def test_another_image_set_is_named_where_one_is_missing(tmp_path: Path) -> None:
    put(tmp_path, "train_blurred.tar.gz")
    with pytest.raises(UserError, match=r"data\.source=train is not in .*there is .*train_blurred"):
        find.choose(tmp_path, "train", "auto", 64)


def test_missing_shards_are_counted(tmp_path: Path) -> None:
    for number in (0, 2, 4):
        put(tmp_path, f"train-{number:05d}-of-00005.parquet")
    with pytest.raises(UserError, match=r"2 of 5 shards are missing .*number 00001"):
        find.choose(tmp_path, "train", "auto", 64)


def test_without_images_the_only_pack_tells(tmp_path: Path) -> None:
    environment = {"IMAGENET_DIR": str(tmp_path)}
    assert resolved(environment=environment).data.source == "train"
    (tmp_path / "train_blurred_64" / "box").mkdir(parents=True)
    (tmp_path / "train_blurred_64" / "box" / "manifest.json").touch()
    assert resolved(environment=environment).data.source == "train_blurred"
    assert resolved("data.recipe=adm", environment=environment).data.source == "train"


def test_recipes_and_fast_decoding_have_folders_of_their_own(tmp_path: Path) -> None:
    def folder(*words: str) -> str:
        config = resolved("data.source=train", *words, environment={})
        return str(pack_folder(config, {"IMAGENET_DIR": "/i"}))

    assert folder() == "/i/train_64/box"
    assert folder("data.recipe=adm") == "/i/train_64/adm"
    assert folder("downsample.fast=true") == "/i/train_64/box-fast"


def test_the_table_has_every_choice_of_a_configuration() -> None:
    sources = get_args(Data.model_fields["source"].annotation)
    layouts = get_args(Data.model_fields["layout"].annotation)
    assert {p.source for p in PACKAGINGS} == {*sources} - {"auto", *MADE_SOURCES}
    assert {p.layout for p in PACKAGINGS} == {*layouts} - {"auto"}
    for packaging in PACKAGINGS:
        assert callable(import_module(f"pipeline.images.sources.{packaging.module}").open_at)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("train-{}-of-00003-0f3a.parquet", (0, 2)), r"1 of 3 shards .*number 00001"),
        (("imagenet1k-train-{}.tar", (0, 1, 3)), r"1 of 4 shards .*number 00002"),
        (("imagenet1k-train-{}.tar", (2, 3)), r"1 of 3 shards .*number 00001"),
        (("train-{}.parquet", (1, 3)), r"1 of 3 shards .*number 00002"),
    ],
)
def test_gaps_in_any_numbered_shards(
    tmp_path: Path, names: tuple[str, tuple[int, ...]], message: str
) -> None:
    for number in names[1]:
        put(tmp_path, names[0].format(f"{number:05d}"))
    with pytest.raises(UserError, match=message):
        find.choose(tmp_path, "train", "auto", 64)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["train-00000-of-00001.parquet", "train-00000-of-00002.parquet"], "several sets"),
        (["train-00000-of-00001.parquet", "train-more.parquet"], "several sets"),
        (["train-00000-of-00001-a.parquet", "train-00000-of-00001-b.parquet"], "number 00000"),
    ],
)
def test_shards_of_several_sets(tmp_path: Path, names: list[str], message: str) -> None:
    for name in names:
        put(tmp_path, name)
    with pytest.raises(UserError, match=message):
        find.choose(tmp_path, "train", "auto", 64)


@pytest.mark.parametrize("first", [0, 1])
def test_whole_numbered_shards(tmp_path: Path, first: int) -> None:
    for number in (first, first + 1):
        put(tmp_path, f"imagenet1k-train-{number:04d}.tar")
    assert len(find.choose(tmp_path, "train", "auto", 64).paths) == 2
