"""Image files -> small pixels: against Pillow, in every mode, by every route."""

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
import skimage
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, JpegImagePlugin

from pipeline.base.errors import Stopped
from pipeline.bench.photos import PHOTOS, random_crop
from pipeline.images import decode as module
from pipeline.images import formats
from pipeline.images.decode import Decoded, decode, halvings
from pipeline.images.recipes import RECIPES
from tests.images.test_recipes import ORACLES

EXIF_ORIENTATION = 0x0112
ADOBE = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00"
EXACT = sorted(
    name for name in RECIPES if f"{name}-fast" in RECIPES
)  # those that make images smaller
RECIPE = st.sampled_from(EXACT)
RESOLUTION = st.sampled_from([8, 16, 31, 64, 256])

GREY = ("1", "L", "LA")
FORMATS = {"RGB": "JPEG", "CMYK": "JPEG"} | dict.fromkeys(("1", "L", "LA", "P", "RGBA"), "PNG")
DEEP = [("I;16", "PNG"), ("I;16", "TIFF"), ("I", "TIFF"), ("F", "TIFF"), ("I;16", "PPM")]
# 16 x 16 px, a ramp: baseline, Huffman tables replaced by arithmetic coding.
ARITHMETIC = bytes.fromhex(
    "ffd8ffdb004300100b0c0e0c0a100e0d0e1211101318281a181616183123251d283a333d3c3933383740485c4e40"
    "4457453738506d51575f626768673e4d71797064785c656763ffdb0043011112121815182f1a1a2f634238426363"
    "63636363636363636363636363636363636363636363636363636363636363636363636363636363636363636363"
    "6363ffc90011080010001003011100021101031101ffcc000a0010100501101105ffda000c03010002110311003f"
    "00ff00091086a17dac7765db884f50a8945ec657cabb21263c4016a66476af1f8fbc1a1afac6ffd9"
)


def random_image(mode: str, size: tuple[int, int], seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    if mode in ("I;16", "I", "F"):
        kind = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
        return Image.fromarray(rng.integers(0, 999, size[::-1]).astype(kind))
    noise = Image.fromarray(rng.integers(0, 256, (*size[::-1], 4), dtype=np.uint8))
    return noise if mode == "RGBA" else noise.convert("RGB").convert(mode)


def file_of(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def photo(width: int = 500, height: int = 375, name: str = "coffee") -> Image.Image:
    with Image.open(Path(skimage.__file__).parent / "data" / PHOTOS[name]) as opened:
        return opened.convert("RGB").resize((width, height))


def by_pillow(data: bytes, recipe: str, resolution: int) -> Decoded:
    """What Pillow alone makes of a file: pixels, or the kind of its error."""
    try:
        with Image.open(io.BytesIO(data), formats=formats.FORMATS) as opened:
            if opened.mode[0] in "IF":  # it would make them white or black
                return Decoded(None, problem="more than 8 bits per channel")
            image = opened.convert("RGB")
    except Exception as error:
        return Decoded(None, problem=type(error).__name__)
    return Decoded(np.asarray(ORACLES[recipe](image, resolution)))


def assert_as_pillow(data: bytes, recipe: str = "box", resolution: int = 16) -> Decoded:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours = decode(data, "class/image.JPEG", recipe, resolution)
        theirs = by_pillow(data, recipe, resolution)
    if theirs.pixels is None:
        assert ours.pixels is None
        kind = theirs.problem.replace("UnidentifiedImageError", "no image of a known format")
        assert ours.problem.startswith(kind)
    else:
        assert ours.pixels is not None, ours.problem
        np.testing.assert_array_equal(ours.pixels, theirs.pixels)
    return ours


# --- the same pixels as Pillow -----------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(
    mode=st.sampled_from(sorted(FORMATS)),
    size=st.tuples(st.integers(1, 50), st.integers(1, 50)),
    recipe=RECIPE,
    resolution=RESOLUTION,
    orientation=st.integers(1, 8),
    seed=st.integers(0, 99),
)
@example("RGB", (1, 1), "adm", 64, 1, 0)
@example("CMYK", (400, 3), "box", 8, 6, 0)
@example("P", (3, 400), "edm", 16, 1, 0)
@example("RGB", (4000, 30), "adm", 16, 1, 0)
@example("RGB", (30, 4000), "box", 16, 1, 0)
def test_pixels_and_traits_of_every_mode(
    mode: str, size: tuple[int, int], recipe: str, resolution: int, orientation: int, seed: int
) -> None:
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    data = file_of(random_image(mode, size, seed), FORMATS[mode], exif=exif)
    decoded = assert_as_pillow(data, recipe, resolution)
    assert decoded.pixels is not None and decoded.pixels.dtype == np.uint8
    assert set(decoded.traits) == {
        *(["grey"] if mode in GREY else []),
        *(["cmyk"] if mode == "CMYK" else []),
        *(["exif_rotated"] if orientation != 1 else []),
        *(["misnamed"] if FORMATS[mode] != "JPEG" else []),
        *(["alpha"] if "A" in mode and decoded_alpha(data) else []),
    }


def decoded_alpha(data: bytes) -> bool:
    """Whether a file with an alpha channel has a pixel that is not opaque."""
    with Image.open(io.BytesIO(data)) as image:
        return image.getchannel("A").getextrema()[0] < 255


def test_transparency_counts_if_it_hides_something() -> None:
    opaque, glass = photo(20, 10).convert("RGBA"), photo(20, 10).convert("RGBA")
    glass.putpixel((3, 4), (0, 0, 0, 254))
    files = [file_of(opaque, "PNG"), file_of(glass, "PNG")]
    files += [file_of(photo(20, 10).quantize(16), "PNG", transparency=0)]
    traits = [decode(data, "a.png", "box", 8).traits for data in files]
    assert [("alpha" in found) for found in traits] == [False, True, True]


def test_sizes_before() -> None:
    files = [file_of(photo(40, 30)), file_of(photo(40, 30), "PNG"), np.array(photo(40, 30))]
    assert [decode(data, "a", "box", 8).size for data in files] == [(40, 30)] * 3
    assert decode(b"", "a", "box", 8).size is None


@pytest.mark.parametrize(("mode", "kind"), DEEP)
def test_more_than_8_bits_a_channel_are_unreadable(mode: str, kind: str) -> None:
    """Pillow would make all of 16 bits white, and all of floats in [0, 1] black."""
    decoded = decode(file_of(random_image(mode, (20, 10), 0), kind), "a.png", "box", 8)
    assert decoded == Decoded(None, problem="more than 8 bits per channel")


@pytest.mark.parametrize(("format", "problem"), [(1, ""), (2, "signed values")])
def test_signed_values_are_unreadable(format: int, problem: str) -> None:
    """Pillow would make -1 white."""
    data = file_of(photo(20, 10).convert("L"), "TIFF", tiffinfo={339: (format,)})
    decoded = decode(data, "a.tif", "box", 8)
    assert (decoded.problem, decoded.pixels is None) == (problem, bool(problem))


@settings(max_examples=150, deadline=None)
@given(
    size=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    subsampling=st.sampled_from(["444", "422", "420", "440", "411"]),
    quality=st.integers(1, 100),
    noisy=st.booleans(),
)
@example((500, 375), "420", 75, False)
@example((4000, 30), "411", 90, True)
def test_every_sampling(size: tuple[int, int], subsampling: str, quality: int, noisy: bool) -> None:
    image = random_image("RGB", size, 0) if noisy else photo(*size)
    data = simplejpeg.encode_jpeg(np.array(image), quality, "RGB", subsampling)
    assert_as_pillow(data)


@settings(max_examples=100, deadline=None)
@given(
    size=st.tuples(st.integers(1, 200), st.integers(1, 200)),
    options=st.fixed_dictionaries(
        {"quality": st.integers(1, 100), "progressive": st.booleans(), "optimize": st.booleans()},
        optional={
            "keep_rgb": st.just(True),
            "restart_marker_blocks": st.integers(1, 9),
            "icc_profile": st.sampled_from([b"", b"profile" * 99]),
            "xmp": st.just(b'<x tiff:Orientation="3"/>'),
            "comment": st.just(b"hello"),
        },
    ),
)
def test_every_way_to_write_a_jpeg(size: tuple[int, int], options: dict[str, Any]) -> None:
    data = file_of(photo(*size), subsampling=0, **options)
    assert ("exif_rotated" in assert_as_pillow(data).traits) == ("xmp" in options)


def test_several_images_in_a_file() -> None:
    data = file_of(photo(), "MPO", save_all=True, append_images=[photo(300, 200, "cat")])
    assert assert_as_pillow(data).traits == ()


def test_pixels_are_only_shrunk() -> None:
    image = photo()
    decoded = decode(np.array(image), "class/0", "adm-fast", 32)
    np.testing.assert_array_equal(decoded.pixels, np.asarray(ORACLES["adm"](image, 32)))
    assert decoded.traits == () and not decoded.problem


# --- damaged files -----------------------------------------------------------------------------

BASES = [
    file_of(photo(120, 90), quality=92),
    file_of(photo(90, 120), progressive=True, exif=b"Exif\0\0II*\0\x08\0\0\0\0\0"),
    file_of(photo(64, 64, "cat"), subsampling=0, restart_marker_blocks=2),
    file_of(photo(80, 60).convert("L")),
    file_of(photo(80, 60).convert("CMYK")),
    file_of(photo(40, 30), "MPO", save_all=True, append_images=[photo(40, 30, "cat")]),
]


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A JPEG with flipped bits, bytes put in or taken out, an end cut off or garbage behind it."""
    data = bytearray(draw(st.sampled_from(BASES)))
    header = data.find(b"\xff\xda") + 14
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(2, header) | st.integers(header, max(header, len(data) - 1)))
        kind = draw(st.sampled_from(["flip", "put in", "take out", "cut off", "scan", "behind"]))
        if kind == "flip" and place < len(data):
            data[place] ^= 1 << draw(st.integers(0, 7))
        elif kind == "put in":
            data[place:place] = draw(st.binary(min_size=1, max_size=9))
        elif kind == "take out":
            del data[place : place + draw(st.integers(1, 20))]
        elif kind == "cut off":
            del data[place:]
        elif kind == "scan" and (start := data.rfind(b"\xff\xda")) > 0:
            data[start:] = b"\xff\xd9"  # the last scan is missing, the file ends well
        elif kind == "behind":
            data += draw(st.binary(min_size=1, max_size=99))
    return bytes(data)


@pytest.mark.slow
@settings(max_examples=1500, deadline=None)
@given(damaged())
def test_damaged_jpegs_end_as_with_pillow(data: bytes) -> None:
    assert_as_pillow(data)


def test_every_way_to_truncate_a_jpeg() -> None:
    data = file_of(photo(40, 30), quality=50)
    outcomes = {assert_as_pillow(data[:end], "box", 8).problem for end in range(len(data) + 1)}
    assert "" in outcomes and len(outcomes) > 2


def test_odd_headers_are_left_to_pillow() -> None:
    """libjpeg reads past these; Pillow says they are not images, or reads them."""
    data = file_of(photo(40, 30))
    for odd in (b"\xff\xe0\x00\x06JFIF", b"\xff\xe2\x00\x0eICC_PROFILE\0", b"\xff", b"junk"):
        assert_as_pillow(data[:2] + odd + data[2:])
    assert_as_pillow(data[:2] + ADOBE + data[2:])  # transform 0: stored as RGB


def test_decompression_bombs_are_unreadable() -> None:
    decoded = decode(file_of(Image.new("1", (20000, 20000)), "PNG"), "bomb.png", "box", 8)
    assert decoded.pixels is None and decoded.problem.startswith("DecompressionBombError")
    decoded = decode(file_of(photo(1, 4000)), "thin.jpg", "adm", 256)
    assert decoded.pixels is None and decoded.problem.startswith("DecompressionBombError")
    data = file_of(photo(16, 16))  # a header alone claims 60000 x 60000 px
    frame = data.index(b"\xff\xc0") + 5
    assert_as_pillow(data[:frame] + b"\xea\x60\xea\x60" + data[frame + 4 :])


def test_a_signal_is_no_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    """The handler that stops the step may run in the middle of an image."""

    def handler(*_: object) -> None:
        raise Stopped("told to stop")

    monkeypatch.setattr(module, "plain_size", handler)
    with pytest.raises(Stopped):
        decode(file_of(photo(40, 30)), "a.jpg", "box", 8)


def test_other_formats_are_unreadable() -> None:
    """Pillow would hand EPS to another program."""
    data = file_of(Image.new("RGB", (9, 9)), "EPS")
    for nothing in (data, b"", b"\xff", b"\xff\xd8\xff"):
        assert decode(nothing, "image.jpg", "box", 8).problem.startswith("no image")


# --- which route -------------------------------------------------------------------------------


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("the other decoder was called")


@pytest.mark.parametrize("recipe", ["box", "box-fast"])
@pytest.mark.parametrize(
    "options",
    [{}, {"progressive": True}, {"quality": 92, "subsampling": 0}, {"exif": b"Exif\0\0II*\0"}],
)
def test_photographs_are_decoded_by_simplejpeg(
    options: dict[str, Any], recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = file_of(photo(), **options)
    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "load", refuse)
    decoded = decode(data, "class/photo.JPEG", recipe, 64)
    assert decoded.pixels is not None, decoded.problem


def test_other_jpegs_are_decoded_by_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "turbo_pixels", refuse)
    grey, cmyk = photo().convert("L"), photo().convert("CMYK")
    for data in (file_of(grey), file_of(cmyk), file_of(photo(), "PNG"), ARITHMETIC):
        assert assert_as_pillow(data).pixels is not None
    decoded = decode(file_of(photo()), "class/photo.JPEG", "box", 64)
    assert decoded.problem.startswith("AssertionError")  # that the patch is in force


# --- fast --------------------------------------------------------------------------------------


def test_how_often_a_fast_decoder_halves() -> None:
    assert [halvings((500, 375), res) for res in (256, 94, 93, 64, 47, 46, 32, 8)] == [
        *[0, 0, 2, 2, 2, 3, 3, 3]
    ]


@pytest.mark.parametrize("recipe", EXACT)
def test_fast_is_exact_where_it_does_not_apply(recipe: str) -> None:
    small, png = file_of(photo(255, 400)), file_of(photo(), "PNG")
    broken = file_of(photo())[:-40]
    for data in (small, png, file_of(photo().convert("L")), broken):
        fast, exact = (decode(data, "a.jpg", name, 64) for name in (f"{recipe}-fast", recipe))
        np.testing.assert_array_equal(fast.pixels, exact.pixels)
        assert (fast.traits, fast.problem) == (exact.traits, exact.problem)


@pytest.mark.parametrize(
    ("recipe", "mean", "decibels"), [("box", 2, 37), ("adm", 3, 34), ("edm", 2, 39)]
)
def test_fast_is_close(recipe: str, mean: float, decibels: float) -> None:
    """Mean absolute error in grey levels, and peak signal-to-noise ratio, over photographs."""
    errors = []
    for name in PHOTOS:
        crop = random_crop(photo(1100, 800, name), 400, np.random.default_rng(0))
        data = file_of(crop, quality=92)
        names = (f"{recipe}-fast", recipe)
        fast, exact = (decode(data, "a.jpg", name, 64).pixels for name in names)
        assert fast is not None and exact is not None
        errors.append(fast.astype(int) - exact)
    assert 0 < np.abs(errors).mean() < mean
    assert 10 * np.log10(255**2 / np.square(errors).mean()) > decibels
