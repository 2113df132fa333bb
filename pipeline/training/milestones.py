"""The moments of a training at which its weights are kept: its milestones, and its end.

With train.ema=power they are those at which averages were stored, otherwise those of the
checkpoints that runtime.milestone_images keeps. Files are read and never written, so a training may
be under way meanwhile.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pipeline.base.errors import UserError
from pipeline.base.files import read_json, sha256_json
from pipeline.config.load import of_training
from pipeline.config.paths import check_profile, weights_file
from pipeline.config.schema import Config
from pipeline.config.stages import stage_keys
from pipeline.config.train_keys import Train
from pipeline.training.identity import identity, scratch_folder, without_length
from pipeline.training.weights_file import WeightsAbout, load_weights, read_about

if TYPE_CHECKING:
    from torch import Tensor


class Milestone(NamedTuple):
    """Weights that a training has kept."""

    images: int  # seen
    path: Path  # a checkpoint, a stored average, or the weights at the end


def planned(train: Train, every: int | None) -> list[int]:
    """Images seen at each milestone and at the end; `every`: runtime.milestone_images."""
    if train.ema == "power":
        return train.stored_images(train.last_images)
    multiples = range(every, train.last_images + 1, every) if every else []
    steps = {-(-multiple // train.batch) for multiple in multiples}
    return sorted({step * train.batch for step in steps} | {train.last_images})


def check_planned(config: Config) -> None:
    """Raise UserError if a training by `config` keeps nothing but its end."""
    if len(planned(config.train, config.runtime.milestone_images)) > 1:
        return
    power = config.train.ema == "power"
    key = "train.ema_snapshot_images" if power else "runtime.milestone_images"
    raise UserError(
        "evaluate.milestones=true has nothing to score but the end of the training: set "
        f"{key} to a number of images below train.images={config.train.images}, or "
        "evaluate.milestones=false"
    )


@dataclass(frozen=True)
class Run:
    """A training, under way or at its end; sample.* of `config` says which of its averages."""

    folder: Path  # of its results
    scratch: Path  # of its checkpoints
    config: Config  # with the keys that the training reads
    data: dict[str, object]  # what its weights say of the data
    identity: str  # of the training

    @property
    def average(self) -> float:
        """The half-life, in images, or the width of the average that is scored."""
        train, sample = self.config.train, self.config.sample
        if train.ema == "power":
            return train.ema_widths[0] if sample.ema_width is None else sample.ema_width
        first = train.ema_halflife_images[0]
        return first if sample.ema_halflife_images is None else sample.ema_halflife_images

    @cached_property
    def averages(self) -> Path:
        """The folder of its stored averages."""
        return self.scratch / "averages"

    def end(self) -> Milestone | None:
        """The weights at the training's end; None: it is not there yet.

        Those that an earlier training has left in its folder do not count.
        """
        path = self.folder / weights_file(self.config).name
        if self.config.train.ema == "power":
            path = self.folder / "weights.safetensors"
        if not path.exists():
            return None
        about, images = read_about(path), self.config.train.last_images
        known = about.images == images and "imported" not in about.config
        if known and self.is_ours(about.config):
            return Milestone(images, path)
        return None

    def is_ours(self, keys: dict[str, object]) -> bool:
        """Whether the keys that weights were trained by are those of this training."""
        ours = stage_keys(self.config, "train")
        return without_length(keys) == without_length(ours)

    def reached(self) -> list[Milestone]:
        """The milestones that are there up to the training's end, by images seen."""
        last, power = self.config.train.last_images, self.config.train.ema == "power"
        found = self._stored() if power else self._checkpoints()
        end = None if power else self.end()
        found |= {end.images: end} if end else {}
        return [found[images] for images in sorted(found) if images <= last]

    def _checkpoints(self) -> dict[int, Milestone]:
        from pipeline.training import checkpoint

        files = [p for p in checkpoint.checkpoints(self.scratch) if checkpoint.MILESTONE in p.name]
        batch = self.config.train.batch
        by_images = {checkpoint.step_of(path) * batch: path for path in files}
        return {images: Milestone(images, path) for images, path in by_images.items()}

    def _stored(self) -> dict[int, Milestone]:
        from pipeline.training import snapshot_files
        from pipeline.training.power_profile import Profile

        # All widths of a moment are there, the last one is written last
        files, train = snapshot_files.stored(self.averages), self.config.train
        images = {profile.images for profile in files}
        whole = {n for n in images if all(Profile(w, n) in files for w in train.ema_widths)}
        return {n: Milestone(n, files[Profile(train.ema_widths[0], n)]) for n in whole}

    def tensors(self, milestone: Milestone) -> dict[str, "Tensor"]:
        """The averaged weights of a milestone by name, on the CPU.

        Nothing in a file is executed. Raises UserError if one is damaged or missing.
        """
        if self.config.train.ema == "power":
            return self._sum(milestone.images)
        if milestone.path.suffix != ".pt":
            return load_weights(milestone.path)
        from pipeline.training import checkpoint

        place = self.config.train.ema_halflife_images.index(int(self.average))
        try:
            state = checkpoint.load_checked(milestone.path)
            tensors: dict[str, Tensor] = state["averages"][place]
        except Exception as error:  # any damage shows as some exception of the unpickler or zip
            raise UserError(
                f"the checkpoint {milestone.path} is damaged ({type(error).__name__}): copy it "
                "again, or delete it to leave this milestone out"
            ) from error
        return tensors

    def _sum(self, images: int) -> dict[str, "Tensor"]:
        from pipeline.training import averaging, snapshot_files
        from pipeline.training.power_profile import Profile

        stored = averaging.Stored(self.averages, snapshot_files.stored(self.averages), None)
        wanted = Profile(self.average, images)
        if wanted in stored.files:
            return load_weights(stored.files[wanted])
        return averaging.weighted_sum(averaging.solve(stored, wanted).files)

    def about(self, milestone: Milestone) -> WeightsAbout:
        """The record of the weights of a milestone."""
        power = self.config.train.ema == "power"
        average = {"ema_width": self.average} if power else {
            "ema_halflife_images": int(self.average)}  # fmt: skip
        keys = stage_keys(self.config, "train")
        return WeightsAbout(config=keys, record=self.data, images=milestone.images, **average)

    def sha256(self, milestone: Milestone) -> str:
        """A hash of all that the weights of a milestone depend on, instead of their bytes."""
        parts = {"training": self.identity, "images": milestone.images, "average": self.average}
        return sha256_json(parts)


def open_run(config: Config, folder: Path, scratch: Path | None, data: dict[str, object]) -> Run:
    """The training whose results are in `folder`, by the config.json that it has written there.

    `data`: what weights say of its data. `scratch`: the folder of its checkpoints, if another.
    Raises UserError if there is no training, or it does not have the average that sample.* names.
    """
    # The keys that it was started with
    file = folder / "config.json"
    if not file.exists():
        raise UserError(f"{folder} holds no training: start it first, or give training=FOLDER")
    config = of_training(config, read_json(file))
    check_profile(config)
    weights_file(config)

    # Its checkpoints
    if scratch is None:
        scratch = scratch_folder(folder, config, data["sha256"])
    return Run(folder, scratch, config, data, identity(config, data["sha256"]))
