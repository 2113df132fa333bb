"""Sets that EDM's dataset_tool prepared, in a zip or unpacked: their labels, size and recipe."""

import io
import json
from pathlib import Path

import pytest
from PIL import Image

from pipeline.base.errors import UserError
from pipeline.images.sources.base import Source
from pipeline.images.sources.edm import open_edm
from pipeline.images.sources.folders import open_folders
from pipeline.images.sources.reading import read_all
from pipeline.images.sources.synsets import sorted_synsets
from tests import image_sets
from tests.test_downsample import assert_no_pack, make

FOX = "n02119789"  # label 278


def images(source: Source) -> dict[str, object]:
    """Name -> bytes, in the order of the source."""
    items = [item for stretch in source.stretches() for item in stretch.items]
    return dict(zip([item.name for item in items], read_all(items), strict=True))


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("labelled", [True, False])
def test_prepared_sets_with_and_without_labels(
    tmp_path: Path, packed: bool, labelled: bool
) -> None:
    image_sets.write_synset_photos(tmp_path, per_class=2)
    folder = image_sets.write_edm(tmp_path, 16, packed, labelled)
    source = open_edm(next(folder.iterdir()))
    names = [f"class{k:04d}" for k in range(7)] if labelled else ["no_class"]
    assert (source.classes, source.num_images, source.made) == (names, 14, (16, "as_is"))
    as_folders = open_folders(image_sets.edm_as_folders(tmp_path) / "train")
    assert dict(sorted(images(source).items())) == images(as_folders)
    assert source.ignored.num == 0


def test_a_thousand_labels_are_imagenets(tmp_path: Path) -> None:
    """As the tool counts class folders: sorted. Its images' names say nothing."""
    names = [f"00000/img{k:08d}.png" for k in range(1000)]
    about = json.dumps({"labels": [[name, k] for k, name in enumerate(names)]}).encode()
    contents = (png(8, 8), *[b""] * 999)
    files = [*zip(names, contents, strict=True), ("dataset.json", about)]
    source = open_edm(image_sets.make_zip(tmp_path / "train.zip", files))
    assert source.classes == sorted_synsets()
    items = [item for stretch in source.stretches() for item in stretch.items]
    assert items[278].name == f"{FOX}/00000/img00000278.png"


ONE = [["00000/1.png", 0]]
BAD_LABELS = {
    "does not hold .*labels": b'{"labels": 7}',
    "dataset.json of .* does not": b"[]",
    "json of .*does not hold": b"{",
    "make it again with dataset_tool": b'{"labels": [["00000/1.png", [0, 1]]]}',
    "holds 1 images without a label": b'{"labels": [["00000/2.png", 0]]}',
    r"holds 1 labels without an image .*\(00000/2.png\)": json.dumps(
        {"labels": [*ONE, ["00000/2.png", 1]]}
    ).encode(),
    "has two labels for an image": json.dumps({"labels": ONE + ONE}).encode(),
    "has the label -1": b'{"labels": [["00000/1.png", -1]]}',
    "has the label 1000": b'{"labels": [["00000/1.png", 1000]]}',
}


@pytest.mark.parametrize("message", BAD_LABELS)
@pytest.mark.parametrize("packed", [True, False])
def test_bad_labels_of_prepared_images(message: str, packed: bool, tmp_path: Path) -> None:
    files = [("00000/1.png", png(8, 8)), ("dataset.json", BAD_LABELS[message])]
    with pytest.raises(UserError, match=message):
        open_edm(prepared(tmp_path, packed, files))


def prepared(root: Path, packed: bool, files: list[tuple[str, bytes]]) -> Path:
    """A set as dataset_tool leaves it, of these files."""
    if packed:
        return image_sets.make_zip(root / "set.zip", files)
    for name, data in files:
        (root / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "set" / name).write_bytes(data)
    return root / "set"


def png(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(
    ("image", "message"),
    [
        (png(8, 9), r"1.png of 8 x 9 px, which is not a square"),
        (b"no image", "1.png, which cannot be read"),
        (None, "holds no images"),
    ],
)
def test_bad_first_images_of_prepared_sets(
    image: bytes | None, message: str, packed: bool, tmp_path: Path
) -> None:
    files = [("dataset.json", b"{}"), *([("00000/1.png", image)] if image else [])]
    with pytest.raises(UserError, match=message):
        open_edm(prepared(tmp_path, packed, files))


@pytest.mark.parametrize("packed", [True, False])
def test_prepared_images_keep_their_size_and_their_recipe(packed: bool, tmp_path: Path) -> None:
    """Refused if they are of another size, or one is; never left out instead."""
    files = [("00000/1.png", png(8, 8)), ("00000/2.png", png(8, 7)), ("dataset.json", b"{}")]
    prepared(tmp_path, packed, files).rename(tmp_path / ("train.zip" if packed else "train"))
    with pytest.raises(UserError, match="made at 8 px by the recipe as_is, not at 8 px by box"):
        make(tmp_path)
    with pytest.raises(UserError, match="made at 8 px by the recipe as_is, not at 16 px by as_is"):
        make(tmp_path, "data.recipe=as_is", "data.resolution=16")
    with pytest.raises(
        UserError, match=r"2.png is of 8 x 7 px, not of 8 x 8 px: data.recipe=as_is"
    ):
        make(tmp_path, "data.recipe=as_is", "downsample.allow_bad=9")
    assert_no_pack(tmp_path)
