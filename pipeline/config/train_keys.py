"""Keys of `train`: what is trained on, how far, and by which steps."""

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from pipeline.config.types import (
    Beta,
    Fraction,
    NotNegative,
    Positive,
    PositiveInt,
    Precision,
    Section,
    Seed,
    Width,
)


class Train(Section):
    # First weights
    start: str | None  # file of weights or checkpoint; None: drawn by the seed
    # Length of the run
    images: PositiveInt  # training length, images seen
    batch: PositiveInt  # global batch, images, over all ranks and accumulation
    # The path
    times: Literal["uniform", "logit_normal", "edm_skew"]
    time_mean: float | None  # of logit t or ln sigma; None: the published one
    time_std: Positive | None
    weighting: Literal["velocity", "denoising"]  # what the mean of squared errors is of
    # Tokens: workload discrete_flow
    mask_exponent: Positive  # a value is open at time t with probability t to this power
    token_loss: Literal["cross_entropy", "generalised_kl"]
    # Noise and images
    coupling: Literal["independent", "optimal_transport", "semidiscrete"]
    coupling_images: PositiveInt  # consecutive images among which noise is reassigned
    # Learning rate
    lr: Positive
    lr_schedule: Literal["constant", "linear", "cosine", "cosine_restarts", "inverse_sqrt"]
    lr_final: Fraction  # share of lr left at `images`, or at the end of a cycle
    lr_cycle_images: PositiveInt | None  # length of a cycle of cosine_restarts
    lr_decay_images: PositiveInt  # images after which inverse_sqrt falls
    warmup_images: NotNegative
    warmup_from: Fraction | None  # share of lr in the first step; None: as much as in each after it
    # The optimiser
    betas: tuple[Beta, Beta]
    eps: Positive
    weight_decay: Annotated[float, Field(ge=0)]
    clip_grad_norm: Positive | None
    # Regularisation
    label_dropout: Fraction
    flip: bool
    # Averages of the weights
    ema: Literal["halflife", "power"]  # their profile over the training
    # half-life of each average, images; 0: the weights themselves
    ema_halflife_images: Annotated[tuple[NotNegative, ...], Field(min_length=1)]
    ema_rampup: Fraction  # half-life is at most this share of the images seen
    ema_widths: Annotated[tuple[Width, ...], Field(min_length=2)]  # of those of power profile …
    ema_snapshot_images: PositiveInt  # … which are stored after each multiple of this …
    ema_snapshot_precision: Literal["fp16", "fp32"]  # … in this precision
    # Reproducibility
    precision: Precision
    seed: Seed

    @property
    def num_average_copies(self) -> int:
        """Float32 copies of the weights that averages are, with a remainder unless it is plain."""
        if self.ema == "power":
            return 2 * len(self.ema_widths)
        return sum(2 if halflife > 0 else 1 for halflife in self.ema_halflife_images)

    @property
    def num_copies(self) -> int:
        """Float32 copies in a checkpoint: the weights, AdamW's two moments, and the averages."""
        return 3 + self.num_average_copies

    @property
    def snapshot_bytes(self) -> int:
        """Bytes of a parameter in all stored averages together; 0 if none are stored."""
        size = {"fp16": 2, "fp32": 4}[self.ema_snapshot_precision]
        num_stored = len(self.stored_images(self.last_images)) * len(self.ema_widths)
        return num_stored * size if self.ema == "power" else 0

    @property
    def last_images(self) -> int:
        """Images seen at the end, a multiple of the batch."""
        return -(-self.images // self.batch) * self.batch

    def num_milestones(self, every: int | None) -> int:
        """Checkpoints kept at multiples of `every` images, at most one per step; None: none."""
        return self.last_images // max(every, self.batch) if every else 0

    def stored_images(self, end: int) -> list[int]:
        """Images seen when averages are stored, in a training up to `end`: after the first step at
        or beyond each multiple of ema_snapshot_images, and at the end.
        """
        batch = self.batch
        every = max(batch, self.ema_snapshot_images)  # no more often than after each step
        steps = {-(-multiple // batch) for multiple in range(every, end + 1, every)}
        return sorted({step * batch for step in steps if step * batch <= end} | {end})

    @field_validator("ema_halflife_images", mode="before")
    @classmethod
    def _one_number_is_a_list(cls, value: Any) -> Any:
        return [value] if type(value) in (int, float, str) else value

    @field_validator("ema_halflife_images", "ema_widths")
    @classmethod
    def _no_average_twice(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if len(set(value)) < len(value):
            raise ValueError("expected no number twice")
        return value

    @field_validator("lr_cycle_images")
    @classmethod
    def _restarts_need_a_cycle(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is None and info.data.get("lr_schedule") == "cosine_restarts":
            raise ValueError("cosine_restarts needs the length of a cycle, in images")
        return value

    @field_validator("coupling_images")
    @classmethod
    def _groups_fill_the_batch(cls, value: int, info: ValidationInfo) -> int:
        batch, coupling = info.data.get("batch"), info.data.get("coupling")
        if coupling == "optimal_transport" and batch and batch % value:
            raise ValueError(f"with optimal_transport use a divisor of train.batch={batch}")
        return value
