"""Sets of images: what is read is what Pillow and numpy read, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from pipeline.base.errors import UserError
from pipeline.scoring.image_sets import notes_on_labels, npz_images, open_images

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 6, 8, 3), np.uint8)
ROWS = np.array([4, 0, 2])


def test_files_of_all_kinds_are_read_as_pillow_reads_them(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    picture = Image.fromarray(IMAGES[0])
    names = ["a.PNG", "b/c.jpg", "b/d.JPEG", "e.webp", "f.png", "g.bmp", "h.tif", "i.jfif", "j.pgm"]
    for name in names:
        picture.convert("L" if name in ("f.png", "j.pgm") else "RGB").save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / ".hidden.png").write_text("no image")
    actual = open_images(tmp_path)
    assert (len(actual), actual.size) == (9, (6, 8))
    assert actual.notes == (
        f"3 of the 9 images of {tmp_path} are JPEGs: their compression changes the distances, so "
        "that only sets of the same format can be compared",
        f"2 files of {tmp_path} are not images and are not scored: .hidden.png, notes.txt",
    )
    wanted = [np.asarray(Image.open(tmp_path / name).convert("RGB")) for name in names]
    np.testing.assert_array_equal(actual.read(ROWS), np.stack(wanted)[ROWS])


@pytest.mark.parametrize("key", ["arr_0", "images"])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_archives_are_read_as_numpy_reads_them(tmp_path: Path, key: str, save: object) -> None:
    path = tmp_path / "set.npz"
    for order in ("C", "F"):
        arrays = {"labels": np.arange(5), key: np.asarray(IMAGES, order=order)}
        save(path, **arrays)  # type: ignore[operator]
        np.testing.assert_array_equal(open_images(path).read(ROWS), IMAGES[ROWS])
    images = npz_images(path)
    assert isinstance(images, np.memmap) == (save is np.savez)


def test_arrays_are_mapped(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", IMAGES)
    for path in (tmp_path, tmp_path / "images.npy"):
        np.testing.assert_array_equal(open_images(path).read(ROWS), IMAGES[ROWS])


def test_images_of_several_sizes_are_refused(tmp_path: Path) -> None:
    Image.fromarray(IMAGES[0]).save(tmp_path / "a.png")
    Image.fromarray(IMAGES[1][:, :6]).save(tmp_path / "b.png")
    with pytest.raises(
        UserError, match=r"several sizes, a\.png of \(6, 8\) and b\.png of \(6, 6\)"
    ):
        open_images(tmp_path)


def test_deep_and_damaged_files_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((6, 8), 40_000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(UserError, match="more than 8 bits"):
        open_images(tmp_path)
    (tmp_path / "deep.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"deep\.png is not a readable image"):
        open_images(tmp_path)
    Image.fromarray(IMAGES[0]).save(tmp_path / "deep.png")
    content = (tmp_path / "deep.png").read_bytes()
    (tmp_path / "deep.png").write_bytes(content[:-60])
    with pytest.raises(UserError, match=r"deep\.png is damaged"):
        open_images(tmp_path).read(np.array([0]))


def test_images_that_would_not_be_scored_are_refused(tmp_path: Path) -> None:
    for name in ("a.png", "c"):
        Image.fromarray(IMAGES[0]).save(tmp_path / name, "PNG")
    Image.fromarray(IMAGES[0]).save(tmp_path / "b.jp2")
    with pytest.raises(UserError, match=r"2 files of .* hold images .* read \(b\.jp2, c\)"):
        open_images(tmp_path)


def test_images_below_links_are_scored(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "set").mkdir()
    Image.fromarray(IMAGES[0]).save(tmp_path / "elsewhere/a.png")
    (tmp_path / "set/link").symlink_to(tmp_path / "elsewhere")
    assert len(open_images(tmp_path / "set")) == 1


def test_labels_beside_images_are_said_to_be_ignored(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", IMAGES)
    assert list(notes_on_labels(tmp_path)) == []
    np.save(tmp_path / "labels.npy", np.zeros(len(IMAGES)))
    np.savez(tmp_path / "adm.npz", arr_0=IMAGES, arr_1=np.zeros(len(IMAGES)))
    np.savez(tmp_path / "plain.npz", arr_0=IMAGES)
    for name, label in (("", "/labels.npy"), ("images.npy", "/labels.npy"), ("adm.npz", "(arr_1")):
        (note,) = notes_on_labels(tmp_path / name)
        assert label in note and "not used" in note
    assert list(notes_on_labels(tmp_path / "plain.npz")) == []


def test_transparency_is_noted(tmp_path: Path) -> None:
    image = Image.fromarray(IMAGES[0])
    image.putalpha(128)
    image.save(tmp_path / "a.png")
    assert "1 of the 1 images" in open_images(tmp_path).notes[0]
    assert "have transparency" in open_images(tmp_path).notes[0]


@pytest.mark.parametrize("kind", ["text", "bomb", "format"])
def test_whatever_pillow_raises_is_told_by_the_file(tmp_path: Path, kind: str) -> None:
    """A text chunk over Pillow's limit, an image over it, and a format that runs programs."""
    file = tmp_path / "odd.png"
    image, about = Image.fromarray(IMAGES[0]), PngImagePlugin.PngInfo()
    about.add_text("comment", "x" * 2**21, zip=True)
    if kind == "bomb":
        Image.new("1", (20000, 20000)).save(file)
    else:
        image.save(file, "EPS" if kind == "format" else "PNG", pnginfo=about)
    with pytest.raises(UserError, match=r"odd\.png is (not a readable image|damaged)"):
        open_images(tmp_path).read(np.array([0]))


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("a.npz", {"labels": IMAGES}, "holds no images"),
        ("a.npz", {"arr_0": IMAGES.astype(np.float32)}, "float32"),
        ("a.npz", {"arr_0": np.array([None])}, "damaged"),
        ("a.npy", IMAGES[0], r"uint8 \(6, 8, 3\)"),
        ("a.npy", None, "missing"),
        ("a.npz", None, "missing"),
        ("a.zip", None, "not a folder"),
    ],
)
def test_what_is_no_set_of_images_is_refused(
    tmp_path: Path, name: str, array: object, message: str
) -> None:
    if isinstance(array, dict):
        np.savez(tmp_path / name, **array)
    elif array is not None:
        np.save(tmp_path / name, array)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=message):
        open_images(tmp_path / name)


@pytest.mark.parametrize("keep", [0, 10, 200, 600])
def test_a_cut_archive_is_refused(tmp_path: Path, keep: int) -> None:
    np.savez(tmp_path / "a.npz", arr_0=IMAGES)
    content = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "a.npz").write_bytes(content[:keep])
    with pytest.raises(UserError, match="is damaged"):
        open_images(tmp_path / "a.npz")
