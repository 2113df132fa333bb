"""Averages of any width after the training: a sum of those that it has stored."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pipeline.base.errors import UserError
from pipeline.config.older_form import LATER
from pipeline.config.paths import run_folder, weights_files
from pipeline.config.schema import Config
from pipeline.config.train_keys import Train
from pipeline.training import snapshot_files
from pipeline.training.power_profile import Profile, coefficients, mismatch
from pipeline.training.weights_file import WeightsAbout, load_weights, read_about

if TYPE_CHECKING:
    from torch import Tensor

NEGLIGIBLE = 1e-10  # a share of a stored average, below what float32 rounds even if many add up


class Stored(NamedTuple):
    """The averages of a training that are there."""

    folder: Path
    files: dict[Profile, Path]
    final: WeightsAbout | None  # of the weights at the training's end; None: not known

    @property
    def images(self) -> list[int]:
        """Images seen when averages were stored, in order."""
        return sorted({profile.images for profile in self.files})

    @property
    def newest(self) -> int | None:
        """Images seen when all widths were stored last; None: at no time yet.

        One after the other is written, so that of a training that is under way some may be missing.
        """
        counts = Counter(profile.images for profile in self.files)
        path = next(iter(self.files.values()))
        widths = training_of(path).ema_widths
        return max((n for n, count in counts.items() if count == len(widths)), default=None)


def training_of(path: Path) -> Train:
    """The keys of the training that weights in a file are of."""
    return Train.model_validate({**LATER["train"], **read_about(path).section("train")})


def find_stored(config: Config, words: dict[str, str]) -> Stored:
    """The stored averages that the words name; raises UserError if there are none."""
    # By folder, or by the weights at the end
    final = None
    if "snapshots" in words:
        folder = Path(words["snapshots"])
    else:
        first = next(iter(weights_files(config.train).values()))
        given = "weights" in words
        weights = Path(words["weights"]) if given else run_folder(config) / "train" / first
        final = read_about(weights)
        if final.snapshots is None:
            raise UserError(
                f"weights {weights} are not of a training with train.ema=power, which stores "
                "averages: give the weights of one, or snapshots=FOLDER"
            )
        folder = weights.parent / final.snapshots

    # What is in it
    files = snapshot_files.stored(folder)
    if not files:
        raise UserError(
            f"{folder} holds no stored averages: give snapshots=FOLDER, the folder `averages` "
            "beside the checkpoints of a training with train.ema=power"
        )
    return Stored(folder, files, final)


def needed(stored: Stored, images: int) -> list[Profile]:
    """The stored averages that make those at `images`; raises UserError if one is missing.

    They do not depend on how far the training went on after that.
    """
    # Something was stored then
    if images not in stored.images:
        nearest = min(stored.images, key=lambda count: abs(count - images))
        raise UserError(
            f"{stored.folder} holds no averages after {images} images: give sample.ema_images="
            f"{nearest}, the nearest"
        )
    example = next(path for profile, path in stored.files.items() if profile.images == images)
    train = training_of(example)

    # And all before it
    profiles = [Profile(w, n) for w in train.ema_widths for n in train.stored_images(images)]
    if missing := [profile for profile in profiles if profile not in stored.files]:
        first = snapshot_files.file_of(stored.folder, missing[0])
        raise UserError(
            f"{len(missing)} of {len(profiles)} stored averages are missing, {first} the first: "
            "copy them back, or train again"
        )
    return profiles


class Shares(NamedTuple):
    """The stored averages whose sum is the wanted one."""

    files: dict[Path, float]  # the share of each that counts
    num_files: int  # of which they are
    last: Path  # the newest stored average of them
    mismatch: float  # distance of the sum's profile from the wanted one, as a share of its length

    @property
    def gigabytes(self) -> float:
        """Size of the files that are read."""
        return sum(path.stat().st_size for path in self.files) / 1e9


def solve(stored: Stored, wanted: Profile) -> Shares:
    """The shares of the stored averages; raises UserError if one that is needed is missing."""
    profiles = needed(stored, wanted.images)
    weights = coefficients(profiles, wanted)
    files = [stored.files[profile] for profile in profiles]
    shares = dict(zip(files, map(float, weights), strict=True))
    shares = {path: share for path, share in shares.items() if abs(share) > NEGLIGIBLE}
    return Shares(shares, len(files), files[-1], mismatch(profiles, weights, wanted))


def weighted_sum(shares: dict[Path, float]) -> "dict[str, Tensor]":
    """The sum of files of weights, each times its share, in float64, rounded to float32.

    Whole numbers are those of the last file. One file at a time is in memory.
    Raises UserError if a file is damaged, not of the same network as the first, or not finite.
    """
    total: dict[str, Tensor] = {}
    for path, share in shares.items():
        tensors = load_weights(path)
        # Of one network
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        if total and shapes != {name: tensor.shape for name, tensor in total.items()}:
            raise UserError(f"{path} is of another network than {next(iter(shares))}: remove it")
        # Added
        for name, tensor in tensors.items():
            if not tensor.is_floating_point():
                total[name] = tensor
            elif name in total:
                total[name].add_(tensor, alpha=share)
            else:
                total[name] = tensor.double() * share

    # Within range
    if broken := [name for name, tensor in total.items() if not tensor.isfinite().all()]:
        raise UserError(
            f"{next(iter(shares)).parent} holds values of {broken[0]} that are not finite: train "
            "with train.ema_snapshot_precision=fp32 if they are too large for fp16"
        )
    return {name: t.float() if t.is_floating_point() else t for name, t in total.items()}


def about_of(stored: Stored, last: Path, wanted: Profile) -> WeightsAbout:
    """The record of the new weights: as of the `last` stored ones, with another width."""
    about = read_about(last).model_copy(update={"ema_width": wanted.width})
    if stored.final is None or stored.final.images != wanted.images:
        return about
    return about.model_copy(update={"gpu_hours": stored.final.gpu_hours})
