"""The loops that downsampling is compared with: a separate program, as its users run it.

    python -m pipeline.bench.loops png|bare PROCESSES RESOLUTION FOLDER OUT

`png`: Pillow decodes, converts, squashes with BOX and writes one PNG a file, over a process pool.
`bare`: each process decodes (simplejpeg) and squashes (Pillow's BOX) its share of the files, and
keeps nothing: the least that exact pixels take.
"""

import multiprocessing
import sys
from functools import partial
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image


def png_of(path: Path, resolution: int, out: Path) -> None:
    """Decode one file, squash it, write a PNG."""
    with Image.open(path) as image:
        small = image.convert("RGB").resize((resolution, resolution), Image.Resampling.BOX)
    small.save(out / f"{path.parent.name}_{path.stem}.png")


def pixels_of(path: Path, resolution: int) -> np.ndarray:
    """Decode one file and squash it: uint8 (resolution, resolution, 3)."""
    image = Image.fromarray(simplejpeg.decode_jpeg(path.read_bytes(), "RGB"))
    return np.asarray(image.resize((resolution, resolution), Image.Resampling.BOX))


def bare_loop(paths: list[Path], resolution: int) -> None:
    """The bare loop over one process's share of the files."""
    for path in paths:
        pixels_of(path, resolution)


def main(kind: str, processes: int, resolution: int, folder: Path, out: Path) -> None:
    """Run one of the loops over folder/<class>/*."""
    # All photographs
    paths = sorted(folder.glob("*/*"))
    with multiprocessing.Pool(processes) as pool:
        if kind == "png":
            pool.map(partial(png_of, resolution=resolution, out=out), paths, chunksize=16)
        else:
            shares = [paths[k::processes] for k in range(processes)]
            pool.map(partial(bare_loop, resolution=resolution), shares, chunksize=1)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]), Path(sys.argv[5]))
