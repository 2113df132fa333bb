"""Files of feature statistics: the project's own references, and those of other evaluators.

The project's is an .npz with `mu`, `sigma` and what they depend on. Others are read too: ADM's and
EDM's .npz (`mu`, `sigma`), and EDM2's .pkl ({"fid": {"mu", "sigma"}, "fd_dinov2": ...}), of which
the part of the extractor is used. Those name neither images nor network.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np

from pipeline.base.errors import UserError
from pipeline.base.files import atomic_stream
from pipeline.base.npy import NPZ_ERRORS
from pipeline.base.safe_pickle import load_arrays

DINOV2_OF_EDM2 = "dinov2-vit-l-14-edm2"
NAMED = 6  # names of arrays that a message lists


@dataclass(frozen=True)
class Reference:
    """Feature statistics of one set of images by one extractor; None if the file does not say."""

    # The statistics
    mu: np.ndarray  # (D) float64
    sigma: np.ndarray  # (D,D) float64
    # Of which images
    num_images: int | None = None
    pack_sha256: str | None = None  # of the pack's images
    # By which network
    extractor: str | None = None
    weights_sha256: str | None = None  # of the extractor's weights file
    data: str | None = None  # <source>_<res>-<recipe> of the pack
    resolution: int | None = None  # px


class Unnamed(ValueError):
    """A file without `mu` or `sigma`; its message lists what there is."""


def save_reference(
    path: Path, reference: Reference, more: Callable[[ZipFile], None] | None = None
) -> None:
    """Write a reference as .npz, atomically; `more` adds further arrays to it."""
    with atomic_stream(path) as stream, ZipFile(stream, "w") as archive:
        for key, value in vars(reference).items():
            if value is not None:
                write_array(archive, key, np.asarray(value))
        if more:
            more(archive)


def write_array(archive: ZipFile, key: str, array: np.ndarray) -> None:
    """Add one array to an .npz."""
    with archive.open(f"{key}.npy", "w", force_zip64=True) as member:
        np.lib.format.write_array(member, array, allow_pickle=False)


def export_reference(path: Path, reference: Reference) -> None:
    """Write `mu` and `sigma` alone, as ADM's, EDM's and EDM2's evaluators read them.

    Raises UserError unless the name ends in .npz, by which they tell the format.
    """
    if path.suffix != ".npz":
        raise UserError(
            f"export={path} does not end in .npz: other evaluators tell the format by the name"
        )
    with atomic_stream(path) as stream:
        np.savez(stream, mu=reference.mu, sigma=reference.sigma)


def load_reference(path: Path, extractor: str | None = None) -> Reference:
    """The reference in `path`; raises UserError if it is missing, damaged or of another kind.

    `extractor`: the one that is asked for, if a file may hold several.
    """
    metric = "fd_dinov2" if extractor == DINOV2_OF_EDM2 else "fid"
    # Format by its content
    try:
        with path.open("rb") as stream:
            zipped = stream.read(2) == b"PK"
        return from_npz(path) if zipped or path.suffix != ".pkl" else from_pickle(path, metric)
    except FileNotFoundError as error:
        raise UserError(
            f"reference {path} is missing: run `python -m pipeline.reference` with the same config"
        ) from error
    except Unnamed as error:
        raise UserError(
            f"reference {path} is damaged or holds no mu and sigma (it holds {error}): save the "
            "mean of the features (D) as mu and their covariance (D,D) as sigma"
        ) from error
    except NPZ_ERRORS as error:
        raise UserError(
            f"reference {path} is damaged or holds no mu and sigma: make it again with "
            "`python -m pipeline.reference`, or get the original file"
        ) from error


def from_npz(path: Path) -> Reference:
    """The reference in an .npz; raises ValueError, KeyError, ... without one."""
    with np.load(path, allow_pickle=False) as data:
        texts = ("pack_sha256", "extractor", "weights_sha256", "data")
        more: dict[str, Any] = {key: str(data[key]) for key in texts if key in data}
        numbers = ("num_images", "resolution")
        more |= {key: int(data[key]) for key in numbers if key in data}
        return checked(data, more)


def from_pickle(path: Path, metric: str) -> Reference:
    """The statistics of a metric in a .pkl; raises UserError if it holds more than arrays."""
    with path.open("rb") as stream:
        content = load_arrays(stream, f"reference {path}")
    if not isinstance(content, dict):
        raise ValueError("no dict of metrics")
    num = content.get("num_images")
    if metric not in content:
        raise Unnamed(", ".join(sorted(map(str, content))[:NAMED]) or "nothing")
    return checked(content[metric], {} if num is None else {"num_images": int(num)})


def checked(data: Mapping[str, Any], more: dict[str, Any]) -> Reference:
    """A reference of finite moments that fit each other; raises ValueError otherwise."""
    if not {"mu", "sigma"} <= set(data):
        raise Unnamed(", ".join(sorted(map(str, data))[:NAMED]) or "nothing")
    mu, sigma = (np.array(data[key], np.float64) for key in ("mu", "sigma"))
    fits = mu.ndim == 1 and sigma.shape == (len(mu), len(mu))
    if not fits or not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise ValueError("no finite moments")
    if (sigma.diagonal() < 0).any():
        raise ValueError("a negative variance")
    return Reference(mu, sigma, **more)
