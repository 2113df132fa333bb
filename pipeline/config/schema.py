"""Every key of the experiment: its type, its range, and the stages that read it.

The values are in config.yaml; how they are laid over each other is in pipeline/config/load.py.
"""

from itertools import pairwise
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, field_validator

from pipeline.config.concept_keys import Concept
from pipeline.config.guide_key import Guide
from pipeline.config.image_sets import Layout, Source
from pipeline.config.machine_keys import Launch, Runtime
from pipeline.config.model_keys import Model
from pipeline.config.select_keys import Select
from pipeline.config.train_keys import Train
from pipeline.config.types import (
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


class Coupling(Section):
    tolerance: Annotated[float, Field(gt=0, le=1)]  # relative deviation of the images' shares, RMS
    max_draws: PositiveInt  # noises per image that the fit draws at most


FixedGridSolver = Literal["euler", "midpoint", "heun", "rk4"]  # rows of sampling/solvers.py
MultistepSolver = Literal["ab2", "ab3"]  # on a grid too, with memory of the last steps
AdaptiveSolver = Literal["dopri5"]
LearnedSolver = Literal["learned"]  # on its own times: sampling/fitting.py
JumpSolver = Literal["jump"]  # of tokens: sampling/jumps.py


class Sample(Section):
    # Number of samples
    num: PositiveInt
    # The solver
    solver: Literal[FixedGridSolver, MultistepSolver, AdaptiveSolver, LearnedSolver, JumpSolver]
    steps: PositiveInt  # of the named grids
    # Times, or a name for them; not of adaptive solvers
    grid: Literal["uniform", "edm", "sigma"] | tuple[Fraction, ...]
    rtol: Positive  # of adaptive solvers
    atol: Positive
    # The fit of a learned one
    fit_images: PositiveInt
    fit_seed: Seed  # not among the reported seeds
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
    # A list holds numbers and names
    classes: Literal["balanced", "histogram", "random"] | tuple[int | str, ...]
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)]
    ema_halflife_images: NotNegative | None  # which average of the weights; None: the first
    ema_width: Width | None  # width of an average of power profile; None: the first
    ema_images: PositiveInt | None  # seen when it was taken; None: at the end
    precision: Precision
    selected: bool  # whether `select` chooses what it searches
    runs: tuple[dict[str, object], ...]  # keys laid over those above, one sampler each; (): one

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
            raise ValueError("expected balanced, histogram, random, or a list of numbers and names")
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
    def multistep(self) -> bool:
        """Whether a step of the solver uses the slopes of those before it."""
        return self.solver in get_args(MultistepSolver)

    @property
    def learned(self) -> bool:
        """Whether the solver is fitted to the network."""
        return self.solver in get_args(LearnedSolver)

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

    def with_run(self, run: dict[str, object]) -> "Sample":
        """These keys with those of one run laid over them, as the only sampler."""
        return Sample.model_validate(self.model_dump() | {"runs": ()} | run)


Extractor = Literal[  # rows of scoring/kinds.py
    "inception-v3-compat",
    "efficientnet-lite0",
    "dinov2-vit-s-14",
    "dinov2-vit-b-14",
    "dinov2-vit-l-14",
    "dinov2-vit-l-14-edm2",
]


Metric = Literal["fid", "kid", "mind", "isc", "prc"]  # see scoring/scores.py


class Evaluate(Section):
    # Features and metrics
    extractor: Extractor
    metrics: Annotated[tuple[Metric, ...], Field(min_length=1)]
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
    coupling: Coupling  # the fit of train.coupling=semidiscrete
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
