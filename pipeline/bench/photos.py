"""A class-folder tree of real photographs: random crops of those that scikit-image ships.

    python -m pipeline.bench.photos OUT [--per-class 60] [--size 128] [--seed 0]

Writes OUT/train/<photo>/<photo>_<k>.JPEG; each photograph is a class. Nothing is downloaded.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import skimage
from PIL import Image

PHOTOS = {
    "astronaut": "astronaut.png",
    "cat": "chelsea.png",
    "coffee": "coffee.png",
    "galaxies": "hubble_deep_field.jpg",
    "retina": "retina.jpg",
    "rocket": "rocket.jpg",
    "tissue": "ihc.png",
}
QUALITY = 92  # of the JPEGs


def random_crop(photo: Image.Image, size: int, rng: np.random.Generator) -> Image.Image:
    """A crop with sides of 0.75..1.33 times `size` px, or the photograph's if that is less."""
    width, height = (
        min(round(size * np.exp(rng.uniform(np.log(0.75), np.log(1.33)))), side)
        for side in photo.size
    )
    left = int(rng.integers(photo.width - width + 1))
    top = int(rng.integers(photo.height - height + 1))
    return photo.crop((left, top, left + width, top + height))


def write_photos(out: Path, per_class: int = 60, size: int = 128, seed: int = 0) -> None:
    """Write the tree OUT/train/<photo>/*.JPEG; crop k of a photograph depends on the seed and k."""
    folder = Path(skimage.__file__).parent / "data"
    for label, (name, file) in enumerate(PHOTOS.items()):
        (out / "train" / name).mkdir(parents=True, exist_ok=True)
        with Image.open(folder / file) as opened:
            photo = opened.convert("RGB")
        for k in range(per_class):
            crop = random_crop(photo, size, np.random.default_rng([seed, label, k]))
            crop.save(out / "train" / name / f"{name}_{k}.JPEG", quality=QUALITY)


def crops_of_size(size: tuple[int, int], count: int, seed: int = 0) -> Iterator[Image.Image]:
    """`count` random crops of exactly `size` (width, height) px, of the photographs in turn."""
    # Photographs that are large enough
    folder = Path(skimage.__file__).parent / "data"
    photos = [Image.open(folder / file).convert("RGB") for file in PHOTOS.values()]
    photos = [p for p in photos if p.width >= size[0] and p.height >= size[1]]
    # In turn
    for k in range(count):
        photo, rng = photos[k % len(photos)], np.random.default_rng([seed, k])
        left = int(rng.integers(photo.width - size[0] + 1))
        top = int(rng.integers(photo.height - size[1] + 1))
        yield photo.crop((left, top, left + size[0], top + size[1]))


def main() -> None:
    """Entry point of the script."""
    # The options
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--per-class", type=int, default=60)
    parser.add_argument("--size", type=int, default=128, help="px, typical side of a crop")
    parser.add_argument("--seed", type=int, default=0)
    # The tree
    options = parser.parse_args()
    write_photos(options.out, options.per_class, options.size, options.seed)


if __name__ == "__main__":
    main()
