"""Images in = rows + images left out, for every packaging: none is passed over in silence."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.base.errors import UserError
from pipeline.images.formats import begins_as_image
from pipeline.images.sources.base import Source
from pipeline.images.sources.edm import open_edm
from pipeline.images.sources.flat import open_flat
from pipeline.images.sources.folder_archives import open_archive
from pipeline.images.sources.folders import open_folders
from pipeline.images.sources.gzipped import open_gzipped
from pipeline.images.sources.hub import open_hub
from pipeline.images.sources.tars import open_tar_of_tars
from pipeline.images.sources.webdataset import open_webdataset
from pipeline.images.walk import walk
from tests.image_sets import make_tar, make_zip
from tests.test_downsample import assert_no_pack, make

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)
READ = (".jfif", ".JPE", ".pgm", ".pnm", ".pbm", ".png", ".bmp", ".tif")


def content(kind: str = "PNG", mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.fromarray(PIXELS).convert(mode).save(file, kind)
    return file.getvalue()


def put(file: Path, data: bytes | None = None) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content() if data is None else data)


def names(source: Source) -> list[str]:
    return [item.name for stretch in source.stretches() for item in stretch.items]


# --- folders -----------------------------------------------------------------------------------


def test_every_suffix_of_a_format_that_is_read(tmp_path: Path) -> None:
    kinds = {".jfif": "JPEG", ".JPE": "JPEG", ".bmp": "BMP", ".tif": "TIFF", ".png": "PNG"}
    for suffix in READ:
        put(tmp_path / f"train/a/1{suffix}", content(kinds.get(suffix, "PPM")))
    assert make(tmp_path)[3]["num_images"] == len(READ)


def test_images_below_a_class_folder_are_of_that_class(tmp_path: Path) -> None:
    """As torchvision's ImageFolder has it; Tiny-ImageNet puts all of a class one folder deeper."""
    for file in ("a/1.png", "a/more/2.png", "a/more/still/3.png", "b/images/1.png"):
        put(tmp_path / "train" / file)
    record, _, labels, _ = make(tmp_path)
    assert record["classes"] == ["a", "b"] and labels.tolist() == [0, 0, 0, 1]


def test_folders_of_folders_may_be_classes(tmp_path: Path) -> None:
    """The letters of Places, and class folders one folder too deep."""
    for file in ("a/airfield/1.png", "a/alley/1.png", "b/bakery/1.png"):
        put(tmp_path / "train" / file)
    with pytest.raises(UserError, match=r"train/a holds no images itself but 2 .*airfield, alley"):
        make(tmp_path)
    assert_no_pack(tmp_path)


def test_links_are_followed_but_not_in_a_ring(tmp_path: Path) -> None:
    put(tmp_path / "train/a/1.png")
    put(tmp_path / "elsewhere/2.png")
    (tmp_path / "train/a/more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "train/a/ring").symlink_to(tmp_path / "train")
    put(tmp_path / "train/b/1.png")
    assert walk(tmp_path / "train") == (["a/1.png", "a/more/2.png", "b/1.png"], [])
    assert walk(tmp_path / "train/a") == (["1.png", "more/2.png"], [])


def test_images_under_other_names_are_refused(tmp_path: Path) -> None:
    for file in ("a/1.png", "a/2", "a/3.avif", "a/4.png.bak", "5"):
        put(tmp_path / "train" / file)
    put(tmp_path / "train/a/notes.txt", b"no image")
    put(tmp_path / "train/a/.hidden")
    with pytest.raises(
        UserError, match=r"4 files of .*train hold images .*\(5, a/2, a/3\.avif and"
    ):
        make(tmp_path)
    assert_no_pack(tmp_path)


def test_images_may_be_passed_over_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in ("a/1.png", "a/2", "a/3.avif"):
        put(tmp_path / "train" / file)
    put(tmp_path / "train/notes.txt", b"no image")
    with pytest.raises(UserError, match=r"downsample\.allow_ignored=2"):
        make(tmp_path, "downsample.allow_ignored=1")
    manifest = make(tmp_path, "downsample.allow_ignored=2")[3]
    assert (manifest["ignored"], manifest["ignored_images"]) == (3, 2)
    assert "3 files are not images by their names: notes.txt, a/2, a/3.avif" in (
        capsys.readouterr().out
    )
    with pytest.raises(UserError, match=r"2 files of .* hold images"):
        make(tmp_path)  # the pack is there, but the configuration allows none


def test_pipes_are_not_waited_for(tmp_path: Path) -> None:
    put(tmp_path / "a/1.png")
    os.mkfifo(tmp_path / "a/pipe")
    (tmp_path / "a/gone").symlink_to("nowhere")
    assert open_folders(tmp_path).ignored.num == 2


def test_hidden_folders_are_counted(tmp_path: Path) -> None:
    for file in ("a/1.png", ".b/1.png", "a/.c/2.png"):
        put(tmp_path / file)
    ignored = open_folders(tmp_path).ignored
    assert (ignored.num, ignored.names, ignored.num_images) == (2, [".b", "a/.c"], 0)


def test_images_beside_folders_are_told_of_the_one_folder_way(tmp_path: Path) -> None:
    put(tmp_path / "train/1.png")
    (tmp_path / "train/all").mkdir()
    with pytest.raises(UserError, match="all of them into one folder there"):
        make(tmp_path)
    put(tmp_path / "train/all/1.png")
    (tmp_path / "train/1.png").unlink()
    assert make(tmp_path)[0]["classes"] == ["all"]


@pytest.mark.parametrize("kind", ["adm", "flat", "edm"])
def test_images_under_other_names_in_other_trees(kind: str, tmp_path: Path) -> None:
    for name in ("cat_1.png", "cat_2.avif", ".cat_3", "sub/cat_4"):
        put(tmp_path / name)
    put(tmp_path / "dataset.json", b"{}")
    source = open_edm(tmp_path) if kind == "edm" else open_flat(tmp_path, kind)
    assert source.num_images == len(names(source)) == 1
    assert (source.ignored.num, source.ignored.num_images) == (3 if kind == "edm" else 4, 2)


# --- archives ----------------------------------------------------------------------------------


def opened(kind: str, root: Path, files: list[tuple[str, bytes]]) -> Source:
    """A set of the class `a` with one image and these files, read to its end."""
    if kind == "tar":
        inner = make_tar(root / "a.tar", [("1.png", content()), *files]).read_bytes()
        source = open_tar_of_tars(make_tar(root / "set.tar", [("a.tar", inner)]))
    elif kind in ("folders.tar", "folders.zip"):
        within = [(f"train/a/{name}", data) for name, data in [("1.png", content()), *files]]
        write = make_tar if kind == "folders.tar" else make_zip
        source = open_archive(write(root / f"set{kind[7:]}", within), kind)
    elif kind == "hub":
        within = [("n01440764_1.png", content()), *files]
        source = open_hub(root, [make_tar(root / "set.tar.gz", within, "w:gz")])
    elif kind == "edm":
        within = [("00000/1.png", content()), ("dataset.json", b"{}"), *files]
        source = open_edm(make_zip(root / "set.zip", within))
    elif kind == "tar.gz":
        within = [(f"train/a/{name}", data) for name, data in [("1.png", content()), *files]]
        source = open_gzipped(make_tar(root / "set.tar.gz", within, "w:gz"))
    else:
        within = [("1.png", content()), ("1.cls", b"0"), ("1.json", b"{}"), *files]
        source = open_webdataset(root, [make_tar(root / "train-0.tar", within)])
    assert len(names(source)) == 1
    return source


ARCHIVES = ["tar", "folders.tar", "folders.zip", "tar.gz", "hub", "webdataset", "edm"]


@pytest.mark.parametrize("kind", ARCHIVES)
def test_images_under_other_names_in_archives(kind: str, tmp_path: Path) -> None:
    files = [("2.avif", content()), ("1.mask.png", content()), ("notes.txt", b"no image")]
    ignored = opened(kind, tmp_path, [f for f in files if kind == "webdataset" or f[0][0] != "1"])
    assert ignored.ignored.num_images == (2 if kind == "webdataset" else 1)
    assert ignored.ignored.images[0].endswith("2.avif")


def test_an_image_beside_class_tars(tmp_path: Path) -> None:
    inner = make_tar(tmp_path / "a.tar", [("1.png", content())]).read_bytes()
    files = [("a.tar", inner), ("image", content())]
    assert open_tar_of_tars(make_tar(tmp_path / "set.tar", files)).ignored.images == ["image"]


# --- EDM ---------------------------------------------------------------------------------------


def test_folders_that_count_images_are_no_classes(tmp_path: Path) -> None:
    put(tmp_path / "train/00000/img00000000.png")
    put(tmp_path / "train/dataset.json", b'{"labels": [["00000/img00000000.png", 7]]}')
    with pytest.raises(UserError, match=r"dataset\.json of EDM's dataset_tool: its folders count"):
        make(tmp_path, "data.layout=folders")
    files = [("t/00000/1.png", content()), ("t/dataset.json", b"{}")]
    with pytest.raises(UserError, match="EDM's dataset_tool"):
        names(open_gzipped(make_tar(tmp_path / "t.tar.gz", files, "w:gz")))
    with pytest.raises(UserError, match="EDM's dataset_tool"):
        open_tar_of_tars(make_tar(tmp_path / "t.tar", files[1:]))


# --- first bytes -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP", "JPEG2000"])
def test_every_format_is_known_by_its_first_bytes(kind: str) -> None:
    assert begins_as_image(content(kind)[:16])


@pytest.mark.parametrize(
    "text", [b"", b"BMW drives\n", b"P.S. ", b"{}", b"RIFF....WAVE", b"\0" * 16]
)
def test_other_files_are_no_images(text: bytes) -> None:
    assert not begins_as_image(text)


# --- what a reader should know -----------------------------------------------------------------


def test_hidden_colours_are_counted_and_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path / "train/a/1.png", content(mode="RGBA"))
    image = Image.fromarray(PIXELS)
    image.putalpha(7)
    image.save(tmp_path / "train/a/2.png")
    assert make(tmp_path)[3]["counts"]["alpha"] == 1
    assert "1 images have transparent pixels" in capsys.readouterr().out


def test_sizes_of_the_source_are_in_the_manifest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, size in enumerate([(12, 12), (300, 257), (9, 9), (12, 12)]):
        (tmp_path / "train/a").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size).save(tmp_path / f"train/a/{number}.png")
    manifest = make(tmp_path)[3]
    sizes = manifest["sizes"]
    assert (sizes["smallest"], sizes["largest"]) == ([9, 9], [300, 257])
    assert (sizes["most_frequent"], sizes["share"]) == ([12, 12], 0.5)
    assert sizes["short_side"] == 257 and not manifest["resized"]
    assert "these are not the originals" not in capsys.readouterr().out


def test_images_of_one_size_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(2):
        put(tmp_path / f"train/a/{number}.png")
    assert make(tmp_path)[3]["sizes"]["share"] == 1.0
    assert "are of 12 x 12 px: if they are photographs, these are not the originals" in (
        capsys.readouterr().out
    )


def test_small_copies_of_any_shape_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As people keep ImageNet: the short side made 256 px, the long one as it falls."""
    (tmp_path / "train/a").mkdir(parents=True)
    for number, size in enumerate([(256, 300), (400, 256), (256, 256)]):
        Image.new("RGB", size).save(tmp_path / f"train/a/{number}.png")
    manifest = make(tmp_path)[3]
    assert manifest["sizes"]["short_side"] == 256 and manifest["resized"]
    assert "are at most 256 px on their short side: if they are photographs, these are not" in (
        capsys.readouterr().out
    )
