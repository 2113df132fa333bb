"""Records of cheap scores: few samples of one network, and how far they are from the real images.

Their number of images is not that of reported scores, so the distances compare with each other
alone.
"""

from typing import ClassVar

from pipeline.base.errors import UserError
from pipeline.base.json_objects import JsonObject


class Trial(JsonObject):
    """The Fréchet distance of a few samples of a network to the whole reference."""

    KIND: ClassVar[str] = "a trial of a network"
    REMEDY: ClassVar[str] = "delete it and run the same command again"

    # The network
    weights: str  # hex sha256 of its file, or of all that it is made of
    images: int | None  # seen in its training; None: not known
    ema_halflife_images: int | None = None
    ema_width: float | None = None
    # The sampler
    guidance: float
    interval: list[float]  # the two times between which it is guided
    seed: int
    # The result
    num: int  # samples
    distance: float
    evaluations: int  # of networks, for all samples together


class Try(JsonObject):
    """One choice of the searched keys, and its score: the mean over the seeds of the search."""

    # The choice
    ema_width: float | None
    guidance: float
    interval: list[float]  # the two times between which it is guided
    # Its score
    distance: float
    evaluations: int  # of networks, with all seeds together


class Choice(JsonObject):
    """The choice of `select`, and all that it tried."""

    KIND: ClassVar[str] = "a choice of rule select"
    REMEDY: ClassVar[str] = "run `python -m pipeline.select` again"

    # What was chosen
    searched: list[str]  # keys of `sample` whose values were chosen
    chosen: Try
    # How
    search: str  # grid or golden
    tries: list[Try]  # in the order of the search, each once
    num: int  # samples of a try with each seed
    seeds: list[int]
    sampler: str  # that was searched
    metric: str  # for people
    extractor: str | None = None  # of the features; None: of an earlier version
    # Of what
    images: int | None  # seen in the training
    weights: str  # hex sha256 of the training's file of weights
    guide: str | None  # likewise; None: without a guide
    average: str | None = None  # likewise, of the chosen average; None: no width was searched

    @property
    def values(self) -> dict[str, object]:
        """The chosen values, by keys of `sample`."""
        values = {
            "ema_width": self.chosen.ema_width,
            "guidance": self.chosen.guidance,
            "guidance_interval": tuple(self.chosen.interval),
        }
        return {key: values[key] for key in self.searched}

    @property
    def evaluations(self) -> int:
        """Evaluations of networks for all tries together."""
        return sum(attempt.evaluations for attempt in self.tries)

    def check(self, weights: str, guide: str | None) -> None:
        """Raise UserError if it was made with other weights, or another guide; hex sha256 of both.

        A guide is not needed if the chosen weight guides nothing. Earlier versions did not write
        which average they chose.
        """
        chosen = self.average if "ema_width" in self.searched else self.weights
        if (chosen or weights, guide and self.guide) != (weights, guide):
            raise UserError(
                "the choice of rule select is one for other weights, or another guide: make one "
                "for these by `python -m pipeline.select`"
            )
