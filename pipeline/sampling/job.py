"""A sampling run, checked before anything expensive starts, and without loading torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pipeline.base.errors import UserError
from pipeline.config.load import load_step
from pipeline.config.model_keys import kind_of
from pipeline.config.older_form import LATER
from pipeline.config.paths import (
    choice_file,
    out_folder,
    samples_folder,
    solver_file,
    weights_file,
)
from pipeline.config.samplers import check_guidance, class_numbers, one_sampler
from pipeline.config.schema import Config, Guide, Sample
from pipeline.config.stages import rank_keys
from pipeline.config.workloads import check_solver
from pipeline.data.pack import DataAbout
from pipeline.images.sources.find import resolve_image_set
from pipeline.reporting.learned import LearnedSolver
from pipeline.reporting.trials import Choice
from pipeline.steps import STEPS
from pipeline.training.weights_file import WeightsAbout, read_about

STEP = STEPS["sample"]


class Weights(NamedTuple):
    """A file of weights, and what it says of itself."""

    path: Path
    about: WeightsAbout
    data: DataAbout  # that the network was trained on

    @property
    def classes(self) -> list[str] | None:
        """Class names in label order; None if the network knows no classes."""
        return self.data.classes if self.about.section("model")["class_conditional"] else None

    @property
    def of_tokens(self) -> bool:
        """Whether the network is one of a discrete flow."""
        return kind_of(self.about.section("model")) == "discrete_unet"

    @property
    def mask_exponent(self) -> float:
        """n of a discrete flow's training, whose masks open as t^n."""
        keys = {**LATER["train"], **self.about.section("train")}  # left out if 3
        return float(keys["mask_exponent"])

    def trained_on(self) -> str:
        """The images of the training, in words."""
        images = f"images of {self.data.resolution} px"
        if self.classes is None:
            return f"{images} without classes"
        return f"{images} in {len(self.classes)} classes, {self.classes[0]} the first"


@dataclass(frozen=True)
class Job:
    """All that is known before the first image."""

    # What is asked for
    config: Config
    weights: Weights
    guide: Weights | None
    seed: int
    # Where it goes
    out: Path
    learned: LearnedSolver | None = None  # of sample.solver=learned
    # What was chosen by trials; None: nothing
    choice: Choice | None = None

    @property
    def identity(self) -> dict[str, object]:
        """Values that all ranks must share; the weights by what they say of themselves."""
        files = {"weights": self.weights, "guide": self.guide}
        about: dict[str, object] = {k: w and w.about.to_json() for k, w in files.items()}
        if self.learned is not None:
            about["solver"] = self.learned.to_json()
        return {**rank_keys(self.config, "sample"), "seed": self.seed, **about}


def prepare(argv: list[str]) -> Job:
    """Read configuration and metadata of the weights; raises UserError about the first problem."""
    return job_of(*load_step(argv, STEP.words))


def job_of(config: Config, words: dict[str, str]) -> Job:
    """The job that a configuration and the paths of the command line ask for: see `prepare`."""
    # The sampler and seed
    config = one_sampler(resolve_image_set(config), words.get("sampler"))
    learned = read_solver(config, words.get("solver"))
    try:
        seed = int(words.get("seed", config.sample.seeds[0]))
    except ValueError as error:
        raise UserError(f"seed={words['seed']} is not a whole number") from error

    # What was chosen after the training
    if "choice" in words and not config.sample.selected:
        raise UserError(
            f"choice={words['choice']} is read with sample.selected=true alone: give that, too, or "
            "leave choice= out"
        )
    choice = None
    if config.sample.selected:
        choice = Choice.read(Path(words["choice"]) if "choice" in words else choice_file(config))
        config = with_choice(config, choice)
    check_seed(seed, choice, learned)

    # Weights that match
    weights = read_weights(Path(words["weights"]) if "weights" in words else weights_file(config))
    check_average(config.sample, weights)
    check_solver(config.sample, weights.of_tokens)
    class_numbers(config.sample, weights.classes)
    check_counts(config.sample, weights)
    dropout = weights.about.section("train").get("label_dropout")
    check_guidance(config.sample, weights.classes is not None, dropout)

    # The guide
    guide = read_guide(config.sample, weights, words.get("guide"))
    out = out_folder(Path(words.get("out", samples_folder(config, seed))))
    return Job(config, weights, guide, seed, out, learned, choice)


def check_seed(seed: int, choice: Choice | None, learned: LearnedSolver | None) -> None:
    """Raise UserError if the sampler was chosen, or its solver fitted, by the images of `seed`."""
    chosen, fitted = choice is not None and seed in choice.seeds, learned and seed == learned.seed
    if chosen or fitted:
        raise UserError(
            f"seed={seed} made the images by which this sampler was "
            f"{'chosen' if chosen else 'fitted'}, so its scores would look better than they are: "
            "give another seed"
        )


def read_solver(config: Config, file: str | None) -> LearnedSolver | None:
    """The fitted solver in `file`, or where rule `solver` writes it; None for another solver.

    Raises UserError if it is missing or damaged, or was fitted for another sampler.
    """
    if not config.sample.learned:
        if file is not None:
            raise UserError(
                f"solver={file} is read with sample.solver=learned alone: give that, too, or leave "
                "solver= out"
            )
        return None
    solver = LearnedSolver.read(solver_file(config) if file is None else Path(file))
    solver.check(config.sample)
    return solver


def with_choice(config: Config, choice: Choice) -> Config:
    """The configuration whose sampler has the values that rule `select` chose."""
    sample = config.sample.model_copy(update=choice.values)
    return config.model_copy(update={"sample": sample})


def read_weights(path: Path) -> Weights:
    """A file of weights; raises UserError if it is missing, damaged or of another program."""
    about = read_about(path)
    return Weights(path, about, DataAbout.parse(about.record, f"the data of weights {path}"))


def read_guide(sample: Sample, weights: Weights, file: str | None) -> Weights | None:
    """The weights of sample.guide; None without a guide or without guidance.

    `file`: those that the experiment in sample.guide trained. Raises UserError if it is needed and
    None, or the guide is of images of another size or of other classes than `weights`.
    """
    # No guide needed
    check_guide_word(sample, file)
    if sample.guide is None or sample.guidance == 1:
        return None

    # Its file
    if isinstance(sample.guide, Guide) and file is None:
        raise UserError(
            f"sample.guide names the experiment {sample.guide.experiment}, and its weights are not "
            "given: name their file by guide=FILE, or let Snakemake train them"
        )
    path = Path(sample.guide if isinstance(sample.guide, str) else str(file))

    # Both of one kind
    guide = read_weights(path)
    same_size = guide.data.resolution == weights.data.resolution
    if not same_size or guide.classes != weights.classes:
        raise UserError(
            f"the guide {path} was trained on {guide.trained_on()}, but the weights "
            f"that it should guide on {weights.trained_on()}: give weights of the same size and "
            "classes"
        )
    check_same_tokens(guide, weights)
    return guide


def check_guide_word(sample: Sample, file: str | None) -> None:
    """Raise UserError if guide=`file` is given, but sample.guide names none or another."""
    if file is None or isinstance(sample.guide, Guide):
        return
    if sample.guide is None or Path(sample.guide).resolve() != Path(file).resolve():
        raise UserError(
            f"guide={file} is the file of an experiment that sample.guide names, but sample.guide "
            f"is {sample.guide or 'null'}: give sample.guide={file} instead"
        )


def check_same_tokens(guide: Weights, weights: Weights) -> None:
    """Raise UserError if the guide is not a network of velocities, or of tokens, as the other."""
    named = [f"{kind_of(w.about.section('model'))} network" for w in (guide, weights)]
    values = [w.about.section("model").get("values") for w in (guide, weights)]
    if guide.of_tokens != weights.of_tokens or values[0] != values[1]:
        kinds = [f"{n} of {v} values" if v else n for n, v in zip(named, values, strict=True)]
        raise UserError(
            f"the guide {guide.path} is a {kinds[0]}, but the weights that it should guide are a "
            f"{kinds[1]}: give weights of one kind"
        )


def check_counts(sample: Sample, weights: Weights) -> None:
    """Raise UserError if sample.classes needs numbers of images that the weights do not give."""
    # Counts are not needed
    if sample.classes != "histogram" or weights.classes is None:
        return

    # Counts of every class
    if not set(weights.classes) <= set(weights.data.per_class or {}):
        raise UserError(
            f"weights {weights.path} do not say how many images each class had (`per_class`), "
            "which sample.classes=histogram needs: use balanced, or make the weights again from a "
            "pack whose record says so"
        )


def check_average(sample: Sample, weights: Weights) -> None:
    """Raise UserError if the weights are another average than sample.* says; None: any will do."""
    about = weights.about
    checks = {
        "ema_halflife_images": f"with a half-life of {about.ema_halflife_images} images",
        "ema_width": f"with a width of {about.ema_width}",
    }
    for key, actual in checks.items():
        wanted = getattr(sample, key)
        if wanted is not None and wanted != getattr(about, key):
            raise UserError(
                f"weights {weights.path} are averaged {actual}, not sample.{key}={wanted}: give "
                "another file, or null"
            )
    if sample.ema_images is not None and sample.ema_images != about.images:
        raise UserError(
            f"weights {weights.path} have seen {about.images} images, not "
            f"sample.ema_images={sample.ema_images}: give another file, or null"
        )
