"""The key `sample.guide` if it names an experiment."""

from pipeline.config.types import NotNegative, PositiveInt, Section, Width


class Guide(Section):
    experiment: str  # whose network guides
    images: PositiveInt | None = None  # how long it is trained; None: as the experiment says
    ema_halflife_images: NotNegative | None = None  # which average of its weights; None: the first
    ema_width: Width | None = None  # likewise, of power profile
