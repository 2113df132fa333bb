"""Drawn images of three classes, for the tests of scores."""

import numpy as np
from PIL import Image, ImageDraw

CLASSES = 3


def drawn(num: int, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Coloured discs, squares and triangles on plain ground: images and their classes."""
    rng = np.random.default_rng(seed)
    images, labels = [], np.sort(np.arange(num) % CLASSES)
    for label in labels:
        picture = Image.new("RGB", (size, size), tuple(rng.integers(0, 90, 3)))
        x, y, r = (*rng.uniform(0.35, 0.65, 2) * size, rng.uniform(0.2, 0.3) * size)
        sides = ((x - r, y - r), (x + r, y + r))
        corners = ((x, y - r), (x - r, y + r), (x + r, y + r))
        pen, colour = ImageDraw.Draw(picture), tuple(rng.integers(150, 256, 3))
        shapes = (pen.ellipse, pen.rectangle, pen.polygon)
        shapes[label](corners if label == 2 else sides, fill=colour)
        images.append(np.asarray(picture))
    return np.stack(images), labels.astype(np.int64)
