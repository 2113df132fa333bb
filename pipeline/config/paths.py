"""Names of files and folders: the only module that knows the layout of results/ and packs."""

import errno
import os
from collections.abc import Mapping
from pathlib import Path

from pipeline.base.errors import UserError
from pipeline.config.image_sets import MADE_SOURCES
from pipeline.config.samplers import sampler_name
from pipeline.config.schema import Config, Train

RESULTS = Path("results")


def data_name(config: Config) -> str:
    """`<source>_<res>-<recipe>`, for example train_64-box; data.source is not `auto`."""
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


def weights_files(train: Train) -> dict[int, str]:
    """File name of the weights averaged with each half-life, in the key's order."""
    first, *other_halflives = train.ema_halflife_images
    further = {halflife: f"weights-ema{halflife}.safetensors" for halflife in other_halflives}
    return {first: "weights.safetensors", **further}


def weights_file(config: Config) -> Path:
    """The weights that are sampled: those of sample.ema_halflife_images, else the first.

    Raises UserError if no weights are averaged with that half-life.
    """
    # By key or first
    names, halflife_images = weights_files(config.train), config.sample.ema_halflife_images
    halflife_images = (
        config.train.ema_halflife_images[0] if halflife_images is None else halflife_images
    )
    if halflife_images not in names:
        raise UserError(
            f"sample.ema_halflife_images={halflife_images} is not among train.ema_halflife_images="
            f"{list(names)}: use one of them, or null for the first"
        )
    return run_folder(config) / "train" / names[halflife_images]


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
