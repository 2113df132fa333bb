#!/usr/bin/env bash
# Pillow 13.0.0 beside Pillow 12.3.0 (both from PyPI): Image.resize.
#
# One expects that a resize with a fixed filter gives the same pixels in every release, as downsampled
# data sets and published scores rely on: the filter is separable, and its coefficients are unchanged.
# What happens: one axis is filtered, rounded and clipped to 8 bits before the other. 12.3.0 takes the
# rows first. 13.0.0 takes the columns first if the height loses more than twice as many pixels as the
# width. So a 333 x 500 image made 256 x 256 is another one: by one grey level here and there with BOX,
# by up to twenty with LANCZOS (random pixels). A 500 x 333 image is the same.
#
# Prints the share of values that differ, and the most, for both shapes; fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
install="venv/bin/pip install --quiet --disable-pip-version-check"
$install numpy==2.3.4
$install --no-deps --target old pillow==12.3.0
$install --no-deps --target new pillow==13.0.0
cat > shrink.py <<'CODE'
import sys

import numpy as np
import PIL
from PIL import Image

rng = np.random.default_rng(0)
for width, height in ((333, 500), (500, 333)):
    pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
    for name in ("BOX", "LANCZOS"):
        small = Image.fromarray(pixels).resize((256, 256), Image.Resampling[name])
        np.save(f"{sys.argv[1]}-{width}-{name}.npy", np.asarray(small))
print("Pillow", PIL.__version__)
CODE
for each in old new; do PYTHONPATH=$each venv/bin/python shrink.py $each; done
venv/bin/python - <<'CODE'
import numpy as np

most = {}
for width, shape in ((333, "333 x 500"), (500, "500 x 333")):
    for name in ("BOX", "LANCZOS"):
        old, new = (np.load(f"{v}-{width}-{name}.npy").astype(int) for v in ("old", "new"))
        most[shape, name] = abs(old - new).max()
        share = (old != new).mean()
        print(f"{shape} {name}: {share:.1%} of the values differ, by at most {abs(old - new).max()}")
assert most["333 x 500", "BOX"] > 0 and most["333 x 500", "LANCZOS"] > 5
assert most["500 x 333", "BOX"] == most["500 x 333", "LANCZOS"] == 0
CODE
