"""The features that a reference keeps (kept_features.py), made by `reference` and written."""

import zipfile
from pathlib import Path

import numpy as np

from pipeline.base.npy import write_header
from pipeline.data.pack import Pack
from pipeline.scoring.extractors import Extractor
from pipeline.scoring.kept_features import (
    NOISE,
    REAL,
    ROWS,
    SEED,
    SHA256,
    digest_of,
    kept_rows,
    noise_images,
    num_noise,
)
from pipeline.scoring.references import Reference, save_reference, write_array
from pipeline.scoring.sections import Pass


def passes(folder: Path, extractor: Extractor, pack: Pack, batch: int) -> tuple[Pass, Pass]:
    """The passes over a pack and over noise, whose sections go to `folder`."""
    num, size = len(pack), (pack.record.resolution,) * 2
    wanted = np.zeros(num, bool)
    wanted[kept_rows(num)] = True
    of_pack = extractor.of(lambda rows: pack.images[rows])
    of_noise = extractor.of(lambda rows: noise_images(rows, size, SEED))
    width, noise = extractor.width, np.ones(num_noise(num), bool)
    return (
        Pass("reference", of_pack, batch, wanted, width, True, folder),
        Pass("noise", of_noise, batch, noise, width, False, folder),
    )


def save_real_side(path: Path, reference: Reference, real: Pass, noise: Pass) -> None:
    """Write a reference with the features of its real side as .npz, atomically."""
    save_reference(path, reference, lambda archive: add_features(archive, reference, real, noise))


def add_features(archive: zipfile.ZipFile, reference: Reference, real: Pass, noise: Pass) -> None:
    """Add the features to an .npz, one section after the other, and the sha256 of all in it."""
    digest = digest_of(reference)
    write_array(archive, ROWS, real.rows)
    for key, made in ((REAL, real), (NOISE, noise)):
        digest.update(made.rows.astype("<i8").tobytes())
        with archive.open(f"{key}.npy", "w", force_zip64=True) as member:
            write_header(member, (len(made.rows), made.width), "<f4")
            for part in made.stored("features"):
                digest.update(part.tobytes())
                member.write(part.tobytes())
    write_array(archive, SHA256, np.asarray(digest.hexdigest()))
