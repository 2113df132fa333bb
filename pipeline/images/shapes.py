"""The embedded data set: drawn shapes of ten classes in ImageNet's own layout, made from a seed.

Sizes, aspects, colours, backgrounds and poses vary; the shape names the class, and a person can
name it at 16x16 px. Some files have the oddities that ImageNet's have. Image k of a class depends
on the seed, the class and k alone, so that a small set is the beginning of a large one.
"""

import colorsys
import io
import math
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from pipeline.base.files import atomic

# A shape is what its polygons leave when drawn in turn: (corners, 1 fills or 0 erases).
# Corners are (x, y) with y down; a shape lies about within the unit circle.
Polygon = tuple[list[tuple[float, float]], int]

CLASSES = (
    "circle",
    "square",
    "triangle",
    "star",
    "ring",
    "cross",
    "stripes",
    "heart",
    "crescent",
    "checker",
)

# ImageNet's oddities: (class, k) -> oddity. A turn does not change these classes.
ODDITIES = {
    ("circle", 3): "grey",
    ("circle", 5): "cmyk",
    ("ring", 3): "exif",  # a viewer that obeys EXIF shows it turned by 90 degrees
    ("ring", 5): "png",  # a PNG whose name says JPEG
}
QUALITY = 92  # of the JPEGs
OVERSAMPLING = 4  # the outline is drawn this much larger, then reduced
EXIF_ORIENTATION = 0x0112


def class_name(index: int) -> str:
    """Name of a class as its folder or inner tar has it, for example n00000001_circle."""
    return f"n{index + 1:08d}_{CLASSES[index]}"


# --- outlines ----------------------------------------------------------------------------------


def ellipse(x: float, y: float, radius: float, fill: int) -> Polygon:
    """A circle as a polygon of 64 corners."""
    angles = [2 * math.pi * i / 64 for i in range(64)]
    return [(x + radius * math.cos(a), y + radius * math.sin(a)) for a in angles], fill


def box(x: float, y: float, half_width: float, half_height: float) -> Polygon:
    """A filled rectangle around (x, y)."""
    w, h = half_width, half_height
    return [(x - w, y - h), (x + w, y - h), (x + w, y + h), (x - w, y + h)], 1


def star(points: int, inner: float) -> Polygon:
    """A star with one point up; `inner` is the radius of its notches."""
    corners = []
    for i in range(2 * points):
        radius, angle = (inner if i % 2 else 1.0), math.pi * i / points
        corners.append((radius * math.sin(angle), -radius * math.cos(angle)))
    return corners, 1


def heart() -> Polygon:
    """The curve x = 16 sin^3 t, y = 13 cos t - 5 cos 2t - 2 cos 3t - cos 4t, scaled."""
    corners = []
    for i in range(64):
        t = 2 * math.pi * i / 64
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        corners.append((math.sin(t) ** 3, -(y + 2.5) / 15))
    return corners, 1


def outline(name: str) -> list[Polygon]:
    """The polygons of a class; `stripes` and `checker` reach beyond any picture."""
    # Outlines by class
    shapes: dict[str, list[Polygon]] = {
        "circle": [ellipse(0, 0, 0.95, 1)],
        "square": [box(0, 0, 0.85, 0.85)],
        "triangle": [([(0, -1), (1, 0.8), (-1, 0.8)], 1)],
        "star": [star(5, 0.42)],
        "ring": [ellipse(0, 0, 1, 1), ellipse(0, 0, 0.55, 0)],
        "cross": [box(0, 0, 1, 0.32), box(0, 0, 0.32, 1)],
        "stripes": [box(i - 4.5, 0, 0.25, 5) for i in range(10)],
        "heart": [heart()],
        "crescent": [ellipse(0.2, 0, 1, 1), ellipse(0.75, 0, 0.8, 0)],
        "checker": [
            box(x - 4.5, y - 4.5, 0.5, 0.5) for x in range(10) for y in range(10) if (x + y) % 2
        ],
    }
    return shapes[name]


def draw_mask(name: str, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """The shape as an anti-aliased mask (mode L), its pose jittered; `size` is (width, height)."""
    # Pose of the shape
    width, height = (OVERSAMPLING * side for side in size)
    scale = rng.uniform(0.36, 0.44) * min(width, height)
    angle = math.radians(rng.uniform(-8, 8))
    centre_x = width / 2 + rng.uniform(-0.06, 0.06) * width
    centre_y = height / 2 + rng.uniform(-0.06, 0.06) * height
    cosine, sine = scale * math.cos(angle), scale * math.sin(angle)

    # Drawn large, then reduced
    mask = Image.new("L", (width, height))
    pen = ImageDraw.Draw(mask)
    for corners, fill in outline(name):
        placed = [
            (centre_x + cosine * x - sine * y, centre_y + sine * x + cosine * y) for x, y in corners
        ]
        pen.polygon(placed, fill=255 * fill)
    return mask.reduce(OVERSAMPLING)


# --- colours and backgrounds -------------------------------------------------------------------


def random_colour(
    rng: np.random.Generator, saturation: tuple[float, float], value: tuple[float, float]
) -> np.ndarray:
    """An RGB colour (3,), 0..255, of any hue; `saturation` and `value` are ranges within 0..1."""
    hsv = rng.uniform(), rng.uniform(*saturation), rng.uniform(*value)
    return 255 * np.array(colorsys.hsv_to_rgb(*hsv))


def luma(colour: np.ndarray) -> float:
    """Brightness of an RGB colour, 0..255 (ITU-R BT.601)."""
    return float(colour @ (0.299, 0.587, 0.114))


def random_colours(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Colours (3,) of shape and background, at least 100 of 255 apart in brightness."""
    while True:
        shape = random_colour(rng, (0.6, 1), (0.3, 1))
        ground = random_colour(rng, (0, 0.5), (0.1, 1))
        if abs(luma(shape) - luma(ground)) >= 100:
            return shape, ground


def background(colour: np.ndarray, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """A plain, a shaded or a mildly noisy ground, (H, W, 3), 0..255."""
    # Kind of ground
    width, height = size
    kind = rng.choice(["plain", "gradient", "noise"])
    shade = np.zeros((height, width))
    # Shading or noise
    if kind == "gradient":
        angle = rng.uniform(0, 2 * math.pi)
        y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
        shade = 25 * (math.cos(angle) * x + math.sin(angle) * y)
    elif kind == "noise":
        tones = 24.0 * rng.integers(-1, 2, (7, 7))
        coarse = Image.fromarray(tones.astype(np.float32))
        shade = np.asarray(coarse.resize(size, Image.Resampling.BILINEAR))
    return np.clip(colour + shade[..., None], 0, 255)


def draw(name: str, rng: np.random.Generator) -> Image.Image:
    """One picture (RGB) of a class, 40..160 px a side, width / height 0.75..1.33."""
    aspect = math.sqrt(math.exp(rng.uniform(math.log(0.75), math.log(1.33))))
    side = rng.uniform(47, 138)  # px, geometric mean of the sides
    size = round(side * aspect), round(side / aspect)
    colour, ground = random_colours(rng)
    alpha = np.asarray(draw_mask(name, size, rng))[..., None] / 255
    picture = alpha * colour + (1 - alpha) * background(ground, size, rng)
    return Image.fromarray(np.rint(picture).astype(np.uint8))


# --- files -------------------------------------------------------------------------------------


def encode(picture: Image.Image, oddity: str | None) -> bytes:
    """The bytes of an image file; `oddity` is a value of ODDITIES or None for a plain JPEG."""
    # A PNG on request
    stream = io.BytesIO()
    if oddity == "png":
        picture.save(stream, "PNG")
        return stream.getvalue()
    # JPEGs with oddities
    modes = {"grey": "L", "cmyk": "CMYK"}
    exif = Image.Exif()
    if oddity == "exif":
        exif[EXIF_ORIENTATION] = 6
    picture.convert(modes.get(oddity or "", "RGB")).save(stream, "JPEG", quality=QUALITY, exif=exif)
    return stream.getvalue()


def image_bytes(index: int, k: int, seed: int) -> bytes:
    """Image file k of class number `index`."""
    name = CLASSES[index]
    picture = draw(name, np.random.default_rng([seed, index, k]))
    return encode(picture, ODDITIES.get((name, k)))


def add_member(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    """Append a file without owner or time: equal contents give equal tars."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def class_tar(index: int, per_class: int, seed: int) -> bytes:
    """The tar of one class."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for k in range(per_class):
            name = f"{class_name(index)}_{k}.JPEG"
            add_member(archive, name, image_bytes(index, k, seed))
    return stream.getvalue()


def make_tar(path: Path, per_class: int, seed: int = 0) -> None:
    """Write a tar of class tars as ILSVRC2012_img_train.tar is, with `per_class` images each.

    Raises UserError if the disk is full; nothing half-written is left.
    """
    with (
        atomic(path) as temporary,
        tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as archive,
    ):
        for index in range(len(CLASSES)):
            name = f"{class_name(index)}.tar"
            add_member(archive, name, class_tar(index, per_class, seed))
