"""Names of files and folders: the only module that knows the layout of results/ and packs."""

import errno
import os
from collections.abc import Mapping
from pathlib import Path

from pipeline.base.errors import UserError
from pipeline.config.image_sets import MADE_SOURCES
from pipeline.config.samplers import sampler_name
from pipeline.config.schema import Config
from pipeline.config.train_keys import Train

RESULTS = Path("results")


def data_name(config: Config) -> str:
    """`<source>_<res>-<recipe>`, for example train_64-box; data.source is not `auto`.

    Of documents: concept.name.
    """
    if config.workload == "concept" and config.concept is not None:
        return config.concept.name
    data = config.data
    assert data.source != "auto"
    return f"{data.source}_{data.resolution}-{data.recipe}"


def image_root(config: Config, environment: Mapping[str, str] = os.environ) -> Path:
    """The folder that holds the image set: data.dir, else IMAGENET_DIR.

    Raises UserError if neither is given or the folder does not exist.
    """
    # By key or variable
    place = config.data.dir or environment.get("IMAGENET_DIR")
    if not place:
        raise UserError(
            "IMAGENET_DIR is not set: set it to the folder that holds ImageNet "
            "(or give data.dir=FOLDER)"
        )

    # A folder that exists
    if not Path(place).is_dir():
        name = "data.dir" if config.data.dir else "IMAGENET_DIR"
        raise UserError(f"{name}={place} is not a folder: point it at the images")
    return Path(place)


def pack_folder(config: Config, environment: Mapping[str, str] = os.environ) -> Path:
    """data.path, else `<data.pack_dir or IMAGENET_DIR>/<source>_<res>/<recipe>`.

    Raises UserError if none of the three is given.
    """
    # By its path
    data = config.data
    if data.path:
        return Path(data.path)

    # By its name
    root = data.pack_dir or environment.get("IMAGENET_DIR")
    if not root:
        raise UserError(
            "IMAGENET_DIR is not set: set it to the folder that holds the packs "
            "(or give data.pack_dir=FOLDER or data.path=PACK)"
        )
    return Path(root) / f"{data.source}_{data.resolution}" / data.recipe


def pack_needs_imagenet_dir(config: Config) -> bool:
    """Whether the pack lies below IMAGENET_DIR, since no key names another place."""
    return not (config.data.pack_dir or config.data.path)


def images_need_imagenet_dir(config: Config) -> bool:
    """Whether downsample looks at IMAGENET_DIR, for the images or the pack."""
    is_elsewhere = config.data.source in MADE_SOURCES or config.data.dir is not None
    return not is_elsewhere or pack_needs_imagenet_dir(config)


def record_file(config: Config) -> Path:
    """The pack's record, on which all later rules depend."""
    return RESULTS / "data" / f"{data_name(config)}.json"


def reference_file(config: Config) -> Path:
    """Feature statistics of the pack, shared by every experiment on it."""
    return RESULTS / "reference" / f"{data_name(config)}-{config.evaluate.extractor}.npz"


def duals_file(config: Config) -> Path:
    """Duals of train.coupling=semidiscrete, shared by every experiment that needs the same ones."""
    kind = "classes" if config.model.class_conditional else "whole"
    flip = "-flip" if config.train.flip else ""
    return RESULTS / "coupling" / f"{data_name(config)}-{kind}{flip}.npz"


def extractor_file(config: Config) -> Path:
    """Record of the extractor's weights, which lie in the cache: their sha256."""
    return RESULTS / "extractors" / f"{config.evaluate.extractor}.json"


def run_folder(config: Config) -> Path:
    """`results/<experiment>/<data>`, with one folder per stage."""
    return RESULTS / config.experiment / data_name(config)


def experiment_of(file: Path) -> str | None:
    """The experiment in whose run folder `file` lies; None if that is not below results/."""
    place, results = file.absolute(), RESULTS.absolute()
    inside = place.relative_to(results).parts if place.is_relative_to(results) else ()
    return inside[0] if len(inside) > 3 else None  # <experiment>/<data>/<stage>/<file>


def weights_files(train: Train) -> dict[float, str]:
    """File name of the weights averaged with each half-life, in the key's order.

    Of power profile the first width alone: the rule `average` makes the others.
    """
    if train.ema == "power":
        return {train.ema_widths[0]: "weights.safetensors"}
    first, *others = train.ema_halflife_images
    files: dict[float, str] = {first: "weights.safetensors"}
    return files | {average: f"weights-ema{average}.safetensors" for average in others}


def weights_file(config: Config) -> Path:
    """The weights that are sampled: those of sample.ema_halflife_images, else the first.

    Those of sample.ema_width are made after the training, by the rule `average`.
    Raises UserError if there are no such weights.
    """
    # Made afterwards
    check_profile(config)
    if config.sample.selected and config.select and config.select.ema_widths:
        return chosen_weights_file(config)
    if config.sample.ema_width is not None:
        return average_file(config)

    # By key or first
    names, chosen = weights_files(config.train), config.sample.ema_halflife_images
    average = next(iter(names)) if chosen is None else chosen
    if average not in names:
        raise UserError(
            f"sample.ema_halflife_images={average} is not among train.ema_halflife_images="
            f"{list(names)}: use one of them, or null for the first"
        )
    return run_folder(config) / "train" / names[average]


def average_file(config: Config) -> Path:
    """The weights averaged with sample.ema_width, `.../average/ema<width>-<images>.safetensors`.

    Raises UserError if the training stores nothing when it has seen sample.ema_images.
    """
    # At the end or before
    train, sample = config.train, config.sample
    images = train.last_images if sample.ema_images is None else sample.ema_images
    stored = train.stored_images(train.last_images)
    if images not in stored:
        close = min(stored, key=lambda count: abs(count - images))
        raise UserError(
            f"sample.ema_images={images} is not among the {len(stored):,} numbers of images after "
            f"which train.ema_snapshot_images={train.ema_snapshot_images} stores averages: the "
            f"nearest is {close}"
        )
    return run_folder(config) / "average" / f"ema{sample.ema_width}-{images}.safetensors"


def choice_file(config: Config) -> Path:
    """The file of the choice of rule `select`."""
    return run_folder(config) / "select" / "choice.json"


def chosen_weights_file(config: Config) -> Path:
    """The average that rule `select` chose, if it searches for a width."""
    return choice_file(config).with_name("weights.safetensors")


def solver_file(config: Config) -> Path:
    """The solver that was fitted for `config.sample`: `.../solver/<sampler>.json`."""
    return run_folder(config) / "solver" / f"{sampler_name(config.sample)}.json"


def check_profile(config: Config) -> None:
    """Raise UserError if sample.* chooses an average of another profile than train.ema has."""
    train, sample = config.train, config.sample
    # Keys of half-lives
    if train.ema == "power" and sample.ema_halflife_images is not None:
        raise UserError(
            f"sample.ema_halflife_images={sample.ema_halflife_images} is not possible with "
            "train.ema=power: give sample.ema_width, or null for both"
        )
    # Keys of widths
    for key in ("ema_width", "ema_images"):
        value = getattr(sample, key)
        if train.ema != "power" and value is not None:
            raise UserError(f"sample.{key}={value} needs train.ema=power: give both, or null")
    if sample.ema_images is not None and sample.ema_width is None and not sample.selected:
        raise UserError(
            f"sample.ema_images={sample.ema_images} needs sample.ema_width: give both, or null"
        )


def samples_folder(config: Config, seed: int) -> Path:
    """One set of samples by `config.sample` without its runs: `.../sample/<sampler>/seed<k>`."""
    return run_folder(config) / "sample" / sampler_name(config.sample) / f"seed{seed}"


def metrics_file(config: Config, seed: int) -> Path:
    """The scores of one set of samples: `.../metrics/<sampler>-seed<k>.json`."""
    return run_folder(config) / "metrics" / f"{sampler_name(config.sample)}-seed{seed}.json"


def out_folder(path: Path, word: str = "out") -> Path:
    """`path`, the folder that a step writes into, given as `word`=PATH.

    Raises UserError if it is a file or below one, or cannot be written to.
    """
    existing = next(
        place for place in (path.absolute(), *path.absolute().parents) if place.exists()
    )
    if not existing.is_dir():
        where = "" if existing == path.absolute() else f"below {existing}, which is "
        raise UserError(f"{word}={path} is {where}a file: give a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"{word}={path} cannot be written to: name another place")
    return path


def out_file(path: Path) -> Path:
    """`path`, the file that a step writes; makes its folder, or raises UserError if it cannot."""
    # A file, not folder
    if path.is_dir():
        raise UserError(f"{path} is a folder: give the name of a file")
    # A folder to write
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(path.parent, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}): name another place"
        ) from error
    return path
