"""Every key of the experiment: its type, its range, and the stages that read it.

The values are in config.yaml; how they are laid over each other is in pipeline/config/load.py.
"""

from itertools import pairwise
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, ValidationInfo, field_validator

from pipeline.config.concept_keys import Concept
from pipeline.config.guide_key import Guide
from pipeline.config.image_sets import Layout, Source
from pipeline.config.machine_keys import Launch, Runtime
from pipeline.config.model_keys import Model
from pipeline.config.select_keys import Select
from pipeline.config.types import (
    Beta,
    Fraction,
    NotNegative,
    NotNegativeNumber,
    Positive,
    PositiveInt,
    Precision,
    Section,
    Seed,
    Width,
)

# How an image becomes a small square: rows of images/recipes.py. The fast ones decode JPEGs at a
# fraction of their size: other pixels, so another name.
Recipe = Literal["box", "adm", "edm", "as_is", "box-fast", "adm-fast", "edm-fast"]


class Data(Section):
    # The image set
    source: Source
    layout: Layout
    resolution: Annotated[int, Field(ge=8, le=256)]  # px, both axes
    # The pack
    recipe: Recipe
    expected_images: PositiveInt | None
    expected_classes: PositiveInt | None
    # Folders on this machine
    dir: str | None  # folder of the image set; None: IMAGENET_DIR
    pack_dir: str | None  # folder of the packs; None: IMAGENET_DIR
    path: str | None  # one pack folder, instead of the one named by the keys above


class Downsample(Section):
    allow_bad: Annotated[int, Field(ge=0)]  # unreadable images that may be left out
    allow_ignored: Annotated[int, Field(ge=0)]  # images that may be passed over by their names


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
    coupling: Literal["independent", "optimal_transport"]
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


FixedGridSolver = Literal["euler", "midpoint", "heun", "rk4"]  # rows of sampling/solvers.py
AdaptiveSolver = Literal["dopri5"]
JumpSolver = Literal["jump"]  # of tokens: sampling/jumps.py


class Sample(Section):
    # Number of samples
    num: PositiveInt
    # The solver
    solver: Literal[FixedGridSolver, AdaptiveSolver, JumpSolver]
    steps: PositiveInt  # of the named grids
    # Times, or a name for them; not of adaptive solvers
    grid: Literal["uniform", "edm", "sigma"] | tuple[Fraction, ...]
    rtol: Positive  # of adaptive solvers
    atol: Positive
    # Jumps of tokens
    divergence_free: Literal["none", "symmetric"] | NotNegativeNumber  # c(t) of jumps both ways
    temperature: Positive  # logits are divided by it
    categorical: Literal["float32", "float64"]  # in which values are drawn
    # Guidance
    guidance: Annotated[float, Field(ge=0)]  # 1: the conditional velocity alone
    guidance_interval: tuple[Fraction, Fraction]  # times between which it is guided
    # Weights that guide, or the experiment that trains them; None: the network without the class
    guide: Guide | str | None
    # Classes and seeds
    classes: Literal["balanced", "histogram"] | tuple[int | str, ...]  # a list: numbers, names
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)]
    ema_halflife_images: NotNegative | None  # which average of the weights; None: the first
    ema_width: Width | None  # width of an average of power profile; None: the first
    ema_images: PositiveInt | None  # seen when it was taken; None: at the end
    precision: Precision
    selected: bool  # whether `select` chooses what it searches
    runs: tuple[dict[str, Any], ...]  # keys laid over those above, a sampler each; (): one sampler

    @field_validator("grid")
    @classmethod
    def _times_increase(cls, value: str | tuple[float, ...]) -> str | tuple[float, ...]:
        if isinstance(value, str):
            return value
        if len(value) < 2 or value[-1] != 1 or any(a >= b for a, b in pairwise(value)):
            raise ValueError("expected uniform, edm, sigma, or increasing times that end at 1")
        return value

    @field_validator("guide", mode="before")
    @classmethod
    def _guide_is_a_file_or_an_experiment(cls, value: Any) -> Any:
        is_named = isinstance(value, dict) and isinstance(value.get("experiment"), str)
        if not (value is None or is_named or isinstance(value, str | Guide)):
            raise ValueError("expected a file of weights, {experiment: NAME, ...}, or null")
        return value

    @field_validator("classes", mode="before")
    @classmethod
    def _classes_are_numbers_or_names(cls, value: Any) -> Any:
        value = [value] if type(value) is int else value
        are_other = isinstance(value, list | tuple) and {*map(type, value)} - {int, str}
        if are_other or value in ([], ()):
            raise ValueError("expected balanced, histogram, or a list of class numbers and names")
        return value

    @field_validator("seeds", "classes")
    @classmethod
    def _nothing_twice(cls, value: Any) -> Any:
        if isinstance(value, tuple) and len(set(value)) < len(value):
            raise ValueError("expected no number twice")
        return value

    @field_validator("guidance_interval")
    @classmethod
    def _interval_is_in_order(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[0] >= value[1]:
            raise ValueError("expected two times, the smaller one first")
        return value

    @property
    def adaptive(self) -> bool:
        """Whether the solver chooses its own steps by tolerances, instead of following a grid."""
        return self.solver in get_args(AdaptiveSolver)

    @property
    def jumps(self) -> bool:
        """Whether it is a sampler of tokens, which jump, instead of a solver of an ODE."""
        return self.solver in get_args(JumpSolver)

    @property
    def may_guide(self) -> bool:
        """Whether it is guided, or may turn out to be, by the choice of `select`."""
        return self.guidance != 1 or self.selected

    @property
    def along_sigma(self) -> bool:
        """Whether the steps are straight in the noise level sigma, instead of the time."""
        return self.grid == "sigma" and not self.adaptive

    @property
    def guidance_edges(self) -> tuple[float, ...]:
        """The times inside (0,1) at which guidance begins or ends, and the velocity jumps."""
        if self.guidance == 1:
            return ()
        return tuple(time for time in self.guidance_interval if 0 < time < 1)

    @property
    def samplers(self) -> tuple["Sample", ...]:
        """The samplers of an experiment: these keys, or each of `runs` laid over them.

        Raises pydantic's ValidationError if a run is not valid; a Config that was resolved
        by pipeline/config/load.py has none such.
        """
        return tuple(self.with_run(run) for run in self.runs) or (self,)

    def with_run(self, run: dict[str, Any]) -> "Sample":
        """These keys with those of one run laid over them, as the only sampler."""
        return Sample.model_validate(self.model_dump() | {"runs": ()} | run)


Extractor = Literal[  # rows of scoring/extractors.py
    "inception-v3-compat",
    "efficientnet-lite0",
    "dinov2-vit-s-14",
    "dinov2-vit-b-14",
    "dinov2-vit-l-14",
]


class Evaluate(Section):
    # Features and metrics
    extractor: Extractor
    metrics: Annotated[tuple[Literal["fid", "kid", "isc", "prc"], ...], Field(min_length=1)]
    # Kernel distance
    kid_subsets: PositiveInt
    kid_subset_size: Annotated[int, Field(ge=2)]
    # Other metrics
    isc_splits: PositiveInt
    prc_neighbourhood: PositiveInt
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    weights: str | None  # file of the extractor's weights; None: look for them
    # Over the training: see pipeline/milestones.py
    milestones: bool
    milestone_num: Annotated[int, Field(ge=2)]  # images of each


class Report(Section):
    grid_classes: PositiveInt
    grid_columns: PositiveInt


class Config(Section):
    # What is trained
    experiment: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    workload: Literal["flow", "discrete_flow", "concept"]  # what is trained: see pipeline/train.py
    # Stages of the pipeline
    data: Data
    downsample: Downsample
    concept: Concept | None  # documents; None: images are trained on
    model: Model
    train: Train
    sample: Sample
    select: Select | None  # None: nothing is chosen after the training
    evaluate: Evaluate
    report: Report
    # How it runs
    runtime: Runtime
    launch: Launch

    @property
    def pairs_within_classes(self) -> bool:
        """Whether noise is assigned to images, and the network sees their classes."""
        sees_classes = self.model.class_conditional and self.train.label_dropout < 1
        return self.train.coupling == "optimal_transport" and sees_classes
