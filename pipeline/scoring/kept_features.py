"""Features of the real side of every evaluation, kept in the reference beside its moments.

The step `reference` looks at all images of a pack anyway. It keeps the features of those that
evaluations compare samples with, and of uniform noise, in the same .npz: uncompressed arrays that
are memory-mapped. So they are made once for all seeds, samplers and experiments on a pack. Images
or noise whose features a file does not hold are shown to the network, as without any such file.
"""

import hashlib
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.base.errors import UserError
from pipeline.base.npy import NPZ_ERRORS
from pipeline.scoring.image_sets import mapped
from pipeline.scoring.references import Reference

if TYPE_CHECKING:  # torch is loaded by the ranks alone, not by the launcher, which opens files
    import torch
    from torch import Tensor

    from pipeline.compute.distributed import Ranks
    from pipeline.scoring.keepers import FeaturesOf

HELD = 50_000  # images per side whose features are held for the metrics that compare features
SEED = 2020  # of the kept images and of the noise: evaluate.seed of config.yaml
AT_A_TIME = 4096  # rows that are hashed at once
REAL, ROWS, NOISE, SHA256 = "kept_features", "kept_rows", "noise_features", "kept_sha256"


def draw(num: int, total: int, seed: int) -> np.ndarray:
    """`num` random rows of 0 … total-1, without repetition."""
    return np.random.default_rng(seed).permutation(total)[:num]


def kept_rows(total: int) -> np.ndarray:
    """The images of a pack of `total` whose features are kept, ascending: both parts of a bracket.

    The parts of any smaller bracket with the same seed are among them.
    """
    return np.sort(draw(min(total, 2 * HELD), total, SEED))


def num_noise(total: int) -> int:
    """Images of noise whose features are kept beside those of a pack of `total` images."""
    return min(total // 2, HELD)


def kept_bytes(total: int, width: int) -> int:
    """Size of the reference of a pack of `total` images, by an extractor of `width` features."""
    return 4 * width * (min(total, 2 * HELD) + num_noise(total)) + 8 * width * (width + 1)


def noise_images(rows: np.ndarray, size: tuple[int, int], seed: int) -> np.ndarray:
    """Uniform uint8 noise (B,H,W,3); image i depends on (seed, i) alone."""
    draws = (np.random.default_rng((seed, i)) for i in rows)
    return np.stack([d.integers(0, 256, (*size, 3), np.uint8) for d in draws])


# --- from a file --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kept:
    """Features of some images of a set."""

    rows: np.ndarray  # (K,) int64, ascending: which images
    features: np.ndarray  # (K,D) float32, memory-mapped

    def before(self, compute: "FeaturesOf", device: "torch.device") -> "FeaturesOf":
        """Features that are kept, on `device`, and those of `compute` for other images."""
        import torch

        def features(rows: np.ndarray) -> "tuple[Tensor, Tensor | None]":
            # Places of those that are kept
            places = np.searchsorted(self.rows, rows).clip(max=len(self.rows) - 1)
            are_kept = self.rows[places] == rows
            if not are_kept.any():
                return compute(rows)

            # The others beside them
            result = torch.empty(len(rows), self.features.shape[1], device=device)
            kept = np.array(self.features[places[are_kept]])
            result[torch.from_numpy(are_kept).to(device)] = torch.from_numpy(kept).to(device)
            if not are_kept.all():
                result[torch.from_numpy(~are_kept).to(device)] = compute(rows[~are_kept])[0]
            return result, None

        return features


@dataclass(frozen=True)
class RealSide:
    """The features that a reference keeps."""

    real: Kept  # of images of the pack
    noise: Kept  # of uniform noise by SEED
    sha256: str  # of the whole content, as it was written

    def check(self, reference: Reference, path: Path, group: "Ranks") -> None:
        """Raise UserError on all ranks if the file is not as it was written; rank 0 hashes it."""
        import torch

        same = not group.first or self.digest(reference) == self.sha256
        if not bool(group.minimum(torch.tensor(float(same)))):
            raise UserError(
                f"reference {path} was changed after it was made (another sha256 than it names): "
                "delete it, and make it again with `python -m pipeline.reference`"
            )

    def digest(self, reference: Reference) -> str:
        """Sha256 of the content of the file."""
        digest = digest_of(reference)
        for kept in (self.real, self.noise):
            digest.update(kept.rows.astype("<i8").tobytes())
            for start in range(0, len(kept.rows), AT_A_TIME):
                digest.update(kept.features[start : start + AT_A_TIME].tobytes())
        return digest.hexdigest()


def load_real_side(path: Path, reference: Reference) -> RealSide | None:
    """The features in the file of `reference`; None if it is an older or another one's.

    Raises UserError if they are damaged.
    """
    if not zipfile.is_zipfile(path):
        return None
    try:
        with zipfile.ZipFile(path) as archive, np.load(path, allow_pickle=False) as data:
            if SHA256 not in data:
                return None
            real, noise = (
                mapped(path, archive, archive.getinfo(f"{key}.npy")) for key in (REAL, NOISE)
            )
            rows, sha256 = np.array(data[ROWS], np.int64), str(data[SHA256])
        width = len(reference.mu)
        if real.shape != (len(rows), width) or noise.shape[1:] != (width,):
            raise ValueError("numbers of features differ")
    except NPZ_ERRORS as error:
        raise UserError(
            f"reference {path} is damaged ({error}): delete it, and make it again with "
            "`python -m pipeline.reference`"
        ) from error
    return RealSide(Kept(rows, real), Kept(np.arange(len(noise)), noise), sha256)


def digest_of(reference: Reference) -> Any:
    """A sha256 that has seen everything in a reference except kept features."""
    values = {k: v for k, v in vars(reference).items() if k not in ("mu", "sigma")}
    digest = hashlib.sha256(json.dumps([values, SEED], sort_keys=True).encode())
    for moments in (reference.mu, reference.sigma):
        digest.update(moments.astype("<f8").tobytes())
    return digest
