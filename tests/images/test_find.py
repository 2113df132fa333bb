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
from tests.image_sets import make_zip

PLACES = {
    "train": ("train", "folders"),
    "ILSVRC/Data/CLS-LOC/train": ("train", "folders"),
    "ILSVRC2012_img_train.tar": ("train", "tar"),
    "train.tar": ("train", "folders.tar"),
    "train.zip": ("train", "folders.zip"),
    "train.tar.gz": ("train", "tar.gz"),
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


FILES = {
    "folders": ("a/1.png", "a/2.png"),
    "adm": ("cat_1.png", "cat_2.png", "dog_1.png", "dog_2.png"),
    "flat": ("1.png", "2.png"),
    "edm": ("dataset.json", "00000/img00000000.png"),
}
NOT_ADM = {
    "numbered names": ("00001_a.png", "00002_b.png", "00003_a.png", "00004_b.png"),
    "one beginning": ("img_1.png", "img_2.png", "img_3.png"),
    "a name without": ("cat_1.png", "cat_2.png", "dog_1.png", "dog_2.png", "dog3.png"),
    "an empty class": ("_1.png", "_2.png", "dog_1.png", "dog_2.png"),
}


def fill(folder: Path, names: tuple[str, ...]) -> Path:
    for name in (*names, ".hidden/1.png"):
        put(folder, name)
    return folder


@pytest.mark.parametrize("layout", FILES)
def test_the_contents_of_a_folder_tell_its_layout(tmp_path: Path, layout: str) -> None:
    folder = fill(tmp_path / "train", FILES[layout])
    (found,) = find.image_sets(tmp_path, 64)
    assert (found.layout, found.paths) == (layout, [folder])
    assert find.choose(tmp_path, "train", "auto", 64) == found


@pytest.mark.parametrize("names", NOT_ADM.values(), ids=NOT_ADM.keys())
def test_names_that_are_no_classes_are_told_apart_from_adms(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    fill(tmp_path / "train", names)
    assert find.choose(tmp_path, "train", "auto", 64).layout == "flat"
    assert find.choose(tmp_path, "train", "adm", 64).layout == "adm"


def test_a_layout_that_is_named_outweighs_the_contents(tmp_path: Path) -> None:
    fill(tmp_path / "train", FILES["adm"])
    fill(tmp_path / "ILSVRC/Data/CLS-LOC/train", FILES["folders"])
    assert find.choose(tmp_path, "train", "adm", 64).paths == [tmp_path / "train"]
    assert find.choose(tmp_path, "train", "folders", 64).root == tmp_path
    (tmp_path / "train").rename(tmp_path / "away")
    assert find.choose(tmp_path, "train", "flat", 64).paths[0].parent.name == "CLS-LOC"


def test_prepared_sets_of_the_resolution_alone_are_taken(tmp_path: Path) -> None:
    for size in (32, 64):
        fill(tmp_path / f"ffhq-{size}x{size}", FILES["edm"])
    make_zip(tmp_path / "cifar10-32x32.zip", [("00000/1.png", b""), ("dataset.json", b"{}")])
    make_zip(tmp_path / "other-64x64.zip", [("a/1.png", b"")])
    assert find.choose(tmp_path, "train", "auto", 64).paths == [tmp_path / "ffhq-64x64"]
    with pytest.raises(UserError, match=r"more than once: .*ffhq-32x32 .*; .*cifar10-32x32.zip "):
        find.choose(tmp_path, "train", "auto", 32)


@pytest.mark.parametrize("last", [True, False])
def test_a_zip_of_prepared_images_is_known_by_its_labels(tmp_path: Path, last: bool) -> None:
    """Wherever dataset.json is: more than 64 kB before the end it is looked for by name."""
    files = [(f"00000/img{k:08d}.png", b"") for k in range(1500)]
    about = [("dataset.json", b"{}")]
    make_zip(tmp_path / "train.zip", files + about if last else about + files)
    assert find.choose(tmp_path, "train", "auto", 64).layout == "edm"


@pytest.mark.parametrize("there", [(0, 1, 2, 4), (0, 1, 2, 3), (0,), (1, 2, 3, 4)])
def test_all_five_tars_of_imagenet_1k_are_needed(tmp_path: Path, there: tuple[int, ...]) -> None:
    for number in there:
        put(tmp_path, f"data/train_images_{number}.tar.gz")
    lack = min({0, 1, 2, 3, 4} - set(there))
    with pytest.raises(UserError, match=rf"{5 - len(there)} of 5 shards .*number {lack:05d}"):
        find.choose(tmp_path, "train", "auto", 64)
    for number in range(5):
        put(tmp_path, f"data/train_images_{number}.tar.gz")
    assert find.choose(tmp_path, "train", "auto", 64).layout == "hub"


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
