"""The files that a report reads: training curve, description of samples, scores."""

import json
from pathlib import Path
from typing import ClassVar

from pydantic import ConfigDict

from pipeline.base.errors import UserError
from pipeline.base.json_objects import JsonObject, mapping_at
from pipeline.data.pack import DataAbout

DIGITS = 12  # of a hash, in tables

# --- training ------------------------------------------------------------------------------------


class CurveRow(JsonObject):
    """The part of a row of curve.jsonl that a report shows: means over some steps."""

    KIND: ClassVar[str] = "a row of a training curve"
    REMEDY: ClassVar[str] = "run the training again"

    # How far it is
    step: int
    images: int  # seen so far
    # How it goes
    loss: float
    grad_norm: float
    images_per_s: float
    # What it cost
    seconds: float  # wall time of all steps so far
    gpu_hours: float | None = None  # wall time x number of devices


def read_curve(path: Path) -> list[CurveRow]:
    """The rows of a training curve; raises UserError if it is missing, damaged or empty."""
    # A file with rows
    if not path.is_file():
        raise UserError(f"training curve {path} is missing: run the training first")

    # Each line by itself
    rows = []
    for count, line in enumerate(path.read_bytes().splitlines(), 1):
        place = f"line {count} of {path}"
        try:
            rows.append(CurveRow.parse(json.loads(line), place))
        except ValueError as error:
            raise UserError(f"{place} is not JSON: run the training again") from error

    # At least one
    if not rows:
        raise UserError(f"training curve {path} holds no rows: run the training first")
    return rows


# --- samples -------------------------------------------------------------------------------------


class StartAbout(JsonObject):
    """The file that train.start named: the first weights of a training."""

    KIND: ClassVar[str] = "a description of first weights"
    REMEDY: ClassVar[str] = "make the weights again"

    file: str  # name
    sha256: str
    weights: str  # which they were, in words

    @property
    def text(self) -> str:
        """The name of the file and the beginning of its hash."""
        return f"{self.file} {self.sha256[:DIGITS]}"


class TrainAbout(JsonObject):
    """The training of the weights that samples are from; None: not known (imported weights)."""

    # Length and cost
    images: int | None = None
    gpu_hours: float | None = None
    # Its settings
    config: dict[str, object] | None = None  # the keys that the training read
    torch: str | None = None  # version
    start: StartAbout | None = None  # None: weights drawn by the seed, or not known


class SelectionAbout(JsonObject):
    """The choice by trials that samples follow."""

    tries: int  # variants that were compared
    metric: str  # for people
    extractor: str | None = None  # of the features; None: not known


class SampleAbout(JsonObject):
    """A sample.json: how a set of samples was made. Keys that may be None may be missing."""

    KIND: ClassVar[str] = "a description of samples"
    REMEDY: ClassVar[str] = "sample again"

    # The sampler
    sampler: str
    seed: int
    # Number and cost
    num: int  # images
    nfe_mean: float  # network evaluations per image
    nfe_max: int | None = None
    # Settings of the sampler
    guidance: float
    precision: str
    rounding: str | None = None  # how pixels became integers, in words; None: not known
    config: dict[str, object] | None = None  # the keys that the sampling read
    selection: SelectionAbout | None = None  # None: nothing was chosen by trials, or not known
    # Origin
    weights_sha256: str | None = None
    guide_sha256: str | None = None
    train: TrainAbout | None = None
    data: DataAbout | None = None
    # Speed and machine
    images_per_s: float | None = None  # None also if all images were there already
    seconds: float
    device: str
    world_size: int

    @property
    def title(self) -> str:
        """Sampler and seed."""
        return f"{self.sampler}, seed {self.seed}"

    @property
    def classes(self) -> str | None:
        """How the classes were chosen, as in sample.classes; None: not known, or without any."""
        training = self.train.config if self.train else None
        if mapping_at(training, "model").get("class_conditional") is False:
            return None
        choice = mapping_at(self.config, "sample").get("classes")
        return ", ".join(map(str, choice)) if isinstance(choice, list) else choice


# --- scores --------------------------------------------------------------------------------------


class Bracket(JsonObject):
    """A distance at equal numbers of images, between the least and the largest to be expected."""

    num_images: int  # on each side
    floor: float  # of other real images
    value: float  # of the samples
    ceiling: float  # of uniform noise


class Score(JsonObject):
    """One metric of a set of samples."""

    # Its name
    name: str
    label: str  # for people
    # Its value
    value: float
    num_images: int
    # For comparison
    better: str  # lower or higher
    std: float | None = None
    real: float | None = None  # the value of other real images
    near: float | None = None  # the value of as many samples as those; None: `value` itself
    real_num: int | None = None  # how many; None: num_images
    bracket: Bracket | None = None


class Shares(JsonObject):
    """Shares of images, in [0,1], that are classified as what they are."""

    overall: float
    per_class: list[float | None]  # in label order; None: no images


class ClassAccuracy(Shares):
    """Class accuracy of samples, with that of real images."""

    num_images: int
    floor: Shares


class NeighboursAbout(JsonObject):
    """The nearest real images of a few samples in feature space."""

    # Size of the search
    searched: int  # real images
    total: int  # real images that there are
    # Where they are
    samples: list[int]  # Q rows
    rows: list[list[int]]  # (Q,k) of the real images
    distances: list[list[float]]  # (Q,k)
    # For comparison
    real: float  # median distance of real images to their nearest of `real_searched` others
    real_searched: int


class ReferenceAbout(JsonObject):
    """The real images of an evaluation; keys that are not set do not apply to them."""

    model_config = ConfigDict(extra="allow")

    # The image set
    file: str | None = None
    source: str | None = None
    resolution: int | None = None  # px
    recipe: str | None = None
    # The statistics
    num_images: int | None = None
    pack_sha256: str | None = None  # of the images
    flipped: bool | None = None  # whether they were mirrored, too; None: not known


class Protocol(JsonObject):
    """Everything that scores depend on except the samples. Keys of other versions are kept."""

    model_config = ConfigDict(extra="allow")

    # The features
    extractor: str | None = None
    weights_sha256: str | None = None
    reference: ReferenceAbout | None = None
    # Settings of the metrics
    kid_subsets: int | None = None
    kid_subset_size: int | None = None
    isc_splits: int | None = None
    prc_neighbourhood: int | None = None
    mind_directions: int | None = None
    # Real images whose features KID, precision and recall compare with all samples; None: as many
    # as in the bracket, on both sides (before there was this key)
    num_feature_images: int | None = None
    # What changes numbers
    seed: int | None = None
    versions: dict[str, str] | None = None

    @property
    def text(self) -> str:
        """One line; equal protocols have equal lines."""
        return json.dumps(self.to_json(), sort_keys=True).replace('"', "")[1:-1]


class ScoreSheet(JsonObject):
    """Facts on scored images; None: not known. See reporting/score_sheet.py."""

    # The images
    labels: str | None = None  # sample.classes
    seed: int | None = None
    num: int
    nfe: float | None = None  # mean network evaluations of an image
    # The weights
    weights: str | None = None  # hex sha256
    average: str | None = None  # in words; None: the first, or not known
    chosen: str | None = None  # when, in words
    tries: int | None = None  # variants that rule `select` compared
    # Whether the features that score were seen
    seen_by_training: bool | None = None
    seen_by_guidance: bool | None = None
    seen_by_choice: bool | None = None


class Scores(JsonObject):
    """The scores of a set of images and everything they depend on."""

    KIND: ClassVar[str] = "a metrics file of samples"
    REMEDY: ClassVar[str] = "evaluate again"

    # The scores
    metrics: list[Score]
    class_accuracy: ClassAccuracy | None = None
    neighbours: NeighboursAbout | None = None
    # For the reader
    notes: list[str]
    protocol: Protocol
    sheet: ScoreSheet | None = None  # None: of an earlier version
    seconds: float | None = None  # wall time of the evaluation


class ImagesEvaluation(Scores):
    """A metrics file of any images."""

    sample: dict[str, object]  # how they were made, in the words of the program that made them


class Evaluation(Scores):
    """A metrics file of samples."""

    sample: SampleAbout

    @property
    def protocol_text(self) -> str:
        """The protocol and the choice of the samples' classes as one line."""
        classes = self.sample.classes
        return self.protocol.text + (f", sample.classes: {classes}" if classes else "")
