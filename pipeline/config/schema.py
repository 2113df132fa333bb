"""Every key of the experiment: its type, its range, and the stages that read it.

The values are in config.yaml; how they are laid over each other is in pipeline/config/load.py.
"""

from itertools import pairwise
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, ValidationInfo, field_validator

from pipeline.config.image_sets import Layout, Source
from pipeline.config.model_keys import Model
from pipeline.config.types import (
    Beta,
    Fraction,
    NotNegative,
    Positive,
    PositiveInt,
    Precision,
    Section,
    Seed,
)

# How an image becomes a small square: rows of images/recipes.py. The fast ones decode JPEGs at a
# fraction of their size: other pixels, so another name.
Recipe = Literal["box", "adm", "edm", "box-fast", "adm-fast", "edm-fast"]


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
    # Noise and images
    coupling: Literal["independent", "optimal_transport"]
    coupling_images: PositiveInt  # consecutive images among which noise is reassigned
    # Learning rate
    lr: Positive
    lr_schedule: Literal["constant", "linear", "cosine", "inverse_sqrt"]
    lr_final: Fraction  # share of lr left at `images`: linear, cosine
    lr_decay_images: PositiveInt  # images after which inverse_sqrt falls
    warmup_images: NotNegative
    # The optimiser
    betas: tuple[Beta, Beta]
    weight_decay: Annotated[float, Field(ge=0)]
    clip_grad_norm: Positive | None
    # Regularisation
    label_dropout: Fraction
    flip: bool
    # half-life of each average, images; 0: the weights themselves
    ema_halflife_images: Annotated[tuple[NotNegative, ...], Field(min_length=1)]
    ema_rampup: Fraction  # half-life is at most this share of the images seen
    # Reproducibility
    precision: Precision
    seed: Seed

    @property
    def num_copies(self) -> int:
        """Float32 copies of the weights in a checkpoint: the weights, AdamW's two moments, the
        averages, and a remainder of each with a half-life.
        """
        return 3 + len(self.ema_halflife_images) + sum(h > 0 for h in self.ema_halflife_images)

    @field_validator("ema_halflife_images", mode="before")
    @classmethod
    def _one_number_is_a_list(cls, value: Any) -> Any:
        return [value] if type(value) in (int, float, str) else value

    @field_validator("ema_halflife_images")
    @classmethod
    def _no_halflife_twice(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(value)) < len(value):
            raise ValueError("expected no number twice")
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


class Sample(Section):
    # Number of samples
    num: PositiveInt
    # The solver
    solver: Literal[FixedGridSolver, AdaptiveSolver]
    steps: PositiveInt  # of the grids uniform and edm
    grid: Literal["uniform", "edm"] | tuple[Fraction, ...]  # times; not of adaptive solvers
    rtol: Positive  # of adaptive solvers
    atol: Positive
    # Guidance
    guidance: Annotated[float, Field(ge=0)]  # 1: the conditional velocity alone
    guidance_interval: tuple[Fraction, Fraction]  # times between which it is guided
    guide: str | None  # weights file that guides; None: the network itself without the class
    # Classes and seeds
    classes: Literal["balanced", "histogram"] | tuple[int | str, ...]  # a list: numbers, names
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)]
    ema_halflife_images: NotNegative | None  # which average of the weights; None: the first
    precision: Precision
    runs: tuple[dict[str, Any], ...]  # keys laid over those above, a sampler each; (): one sampler

    @field_validator("grid")
    @classmethod
    def _times_increase(cls, value: str | tuple[float, ...]) -> str | tuple[float, ...]:
        if isinstance(value, str):
            return value
        if len(value) < 2 or value[-1] != 1 or any(a >= b for a, b in pairwise(value)):
            raise ValueError("expected uniform, edm, or increasing times that end at 1")
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


class Report(Section):
    grid_classes: PositiveInt
    grid_columns: PositiveInt


class Gpus(Section):
    train: PositiveInt
    sample: PositiveInt
    reference: PositiveInt
    evaluate: PositiveInt


class Runtime(Section):
    # The machine's share
    gpus: Gpus
    workers: PositiveInt
    start_method: Literal["spawn", "forkserver", "fork"]
    data_on_device: Literal["auto"] | bool
    # Execution
    device: Literal["auto", "cpu", "cuda"]
    compile: Literal["auto"] | bool
    strategy: Literal["ddp", "fsdp2"]
    # Batches that fit
    micro_batch: Literal["auto"] | PositiveInt
    sample_batch: PositiveInt
    feature_batch: PositiveInt
    # Checkpoints
    checkpoint_images: PositiveInt
    checkpoint_minutes: Positive
    keep_checkpoints: PositiveInt
    milestone_images: PositiveInt | None
    # Messages
    log_images: PositiveInt
    progress_seconds: Annotated[float, Field(ge=0)]


class Slurm(Section):
    # The queue
    partition: str | None
    account: str | None
    constraint: str | None
    # Limits of the job
    minutes: PositiveInt
    memory_gb: Positive | None
    signal_seconds: PositiveInt  # before the limit


class Launch(Section):
    # How ranks start
    launcher: Literal["standalone", "torchrun", "submitit_local", "submitit_slurm", "none"]
    # Where nodes meet
    nnodes: PositiveInt
    rdzv_endpoint: str | None  # host:port of the first node
    rdzv_id: str | None  # what the nodes of one job have in common; None: made of its keys
    join_seconds: PositiveInt  # how long nodes wait for each other
    # Network and folders
    interface: str | None  # of the network between the nodes; None: the one that leads there
    folder: str  # of submitit's jobs
    slurm: Slurm
    # Restarts and threads
    max_restarts: NotNegative
    threads: Literal["auto"] | PositiveInt


class Config(Section):
    # What is trained
    experiment: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    workload: Literal["flow"]  # what is trained: see pipeline/train.py
    # Stages of the pipeline
    data: Data
    downsample: Downsample
    model: Model
    train: Train
    sample: Sample
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
