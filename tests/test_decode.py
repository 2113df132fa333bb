"""Image files -> small pixels: against Pillow, in every mode."""

import tempfile
from pathlib import Path

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.decode import decode
from pipeline.sources import ImageFile

EXIF_ORIENTATION = 0x0112

FORMATS = {
    "1": "PNG",
    "L": "PNG",
    "LA": "PNG",
    "P": "PNG",
    "RGB": "JPEG",
    "RGBA": "PNG",
    "CMYK": "JPEG",
    "I;16": "PNG",
    "I": "TIFF",
    "F": "TIFF",
}


def random_image(mode: str, size: tuple[int, int], seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    if mode in ("I;16", "I", "F"):
        kind = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
        return Image.fromarray(rng.integers(0, 999, size[::-1]).astype(kind))
    noise = Image.fromarray(rng.integers(0, 256, (*size[::-1], 4), dtype=np.uint8))
    return noise if mode == "RGBA" else noise.convert("RGB").convert(mode)


@settings(max_examples=150, deadline=None)
@given(
    mode=st.sampled_from(sorted(FORMATS)),
    size=st.tuples(st.integers(1, 50), st.integers(1, 50)),
    resolution=st.sampled_from([8, 16, 31, 64]),
    orientation=st.integers(1, 8),
    seed=st.integers(0, 99),
)
@example("RGB", (1, 1), 64, 1, 0)
@example("CMYK", (400, 3), 8, 6, 0)
@example("P", (3, 400), 16, 1, 0)
def test_pixels_are_pillows(
    mode: str, size: tuple[int, int], resolution: int, orientation: int, seed: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        exif = Image.Exif()
        exif[EXIF_ORIENTATION] = orientation
        path = Path(folder) / f"image.{FORMATS[mode].lower()}"
        random_image(mode, size, seed).save(path, FORMATS[mode], exif=exif)
        decoded = decode(Path(folder), ImageFile(0, path.name), resolution)
        assert decoded.pixels is not None, decoded.problem
        with Image.open(path) as opened:
            expected = opened.convert("RGB").resize((resolution,) * 2, Image.Resampling.BOX)
    np.testing.assert_array_equal(decoded.pixels, np.asarray(expected))
    assert decoded.pixels.dtype == np.uint8
    assert ("exif_rotated" in decoded.traits) == (orientation != 1)


def test_decompression_bombs_are_unreadable(tmp_path: Path) -> None:
    Image.new("1", (20000, 20000)).save(tmp_path / "bomb.png")
    decoded = decode(tmp_path, ImageFile(0, "bomb.png"), 8)
    assert decoded.pixels is None and decoded.problem.startswith("DecompressionBombError")


def test_other_formats_are_unreadable(tmp_path: Path) -> None:
    """Pillow would hand EPS to another program."""
    Image.new("RGB", (9, 9)).save(tmp_path / "image.eps")
    (tmp_path / "image.eps").rename(tmp_path / "image.jpg")
    assert decode(tmp_path, ImageFile(0, "image.jpg"), 8).problem.startswith("no image")
