"""The inputs of an evaluation, opened and checked: images, real images, their statistics."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.base.errors import UserError
from pipeline.base.files import read_json
from pipeline.base.npy import load_npy
from pipeline.config.paths import pack_folder
from pipeline.config.schema import Config
from pipeline.config.schema import Evaluate as Settings
from pipeline.data.pack import DataAbout, Record, open_pack
from pipeline.reporting.records import ReferenceAbout
from pipeline.scoring.image_sets import (
    ImageSet,
    home,
    notes_on_labels,
    npz_images,
    of_array,
    open_images,
    read_labels,
)
from pipeline.scoring.kept_features import RealSide, load_real_side
from pipeline.scoring.kinds import KINDS
from pipeline.scoring.references import Reference, load_reference

STATISTICS = (".npz", ".pkl")


@dataclass(frozen=True)
class Inputs:
    """The two sides of a comparison."""

    images: ImageSet
    labels: np.ndarray | None  # of the images, int64 (N,)
    how: dict[str, object]  # how the images were made: their sample.json, whoever wrote it
    real: ImageSet | None  # None: there are only statistics of them
    real_labels: np.ndarray | None
    classes: list[str]  # names in label order; empty if they are not known
    reference: Reference | None  # None: the statistics are those of `real`, still to be made
    about: ReferenceAbout  # the reference's part of the protocol
    notes: list[str]
    kept: RealSide | None = None  # features of `real` and of noise; None: the file holds none


# --- samples of a run against its pack ---------------------------------------------------------


def read_inputs(
    config: Config, samples: Path, record: Path, reference: Path, across: str | None
) -> Inputs:
    """Samples, pack and reference; raises UserError for the first thing that does not fit.

    `across` names the pack if it is not the one that the samples' model was trained on.
    """
    # The pack's record and its statistics
    facts = Record.read(record)
    statistics = load_reference(reference, config.evaluate.extractor)
    check_reference(statistics, facts, config.evaluate.extractor, reference)
    # Samples
    images = of_array(f"samples {samples}", load_npy(samples / "images.npy"))
    check_sizes(images, (facts.resolution,) * 2)
    how, data = read_about(samples)
    notes = check_same_data(data, facts.name, facts.sha256.images, samples, across)
    comparable = not notes or (data is not None and data.classes == facts.classes)
    labels = labels_beside(samples, len(images), len(facts.classes)) if comparable else None
    # Real images
    pack = open_pack(pack_folder(config), facts)
    check_numbers(config.evaluate, len(images), len(pack))
    data_keys = {key: getattr(facts, key) for key in ("source", "resolution", "recipe")}
    about = ReferenceAbout(**data_keys, **counts_of(statistics))
    real = of_array("pack", pack.images)
    notes += notes_on_origin(statistics, reference, config.evaluate.extractor)
    kept, classes = load_real_side(reference, statistics), facts.classes
    return Inputs(images, labels, how, real, pack.labels, classes, statistics, about, notes, kept)


def read_about(samples: Path) -> tuple[dict[str, object], DataAbout | None]:
    """The sample.json of the samples, and the data that their model was trained on.

    The data are None if another program wrote the file. Raises UserError if it is not a mapping.
    """
    how = read_json(samples / "sample.json")
    if not isinstance(how, dict):
        raise UserError(
            f"{samples / 'sample.json'} is not a mapping: take it away, or sample again"
        )
    return how, DataAbout.parse_if_any(how.get("data"))


def counts_of(reference: Reference) -> dict[str, Any]:
    """Fields of ReferenceAbout that follow from a file of statistics.

    Whether other programs mirrored images is not known.
    """
    flipped = False if reference.pack_sha256 else None
    num, sha256 = reference.num_images, reference.pack_sha256
    return {"num_images": num, "pack_sha256": sha256, "flipped": flipped}


def notes_on_origin(reference: Reference, path: Path, extractor: str) -> list[str]:
    """A note if a file of statistics does not name its images and its network."""
    if reference.extractor and reference.pack_sha256:
        return []
    return [
        f"{path.name} does not say of which images and by which network its statistics are: "
        f"they are taken to be by {extractor}"
    ]


def check_sizes(images: ImageSet, size: tuple[int, ...]) -> None:
    """Raise UserError unless there are two images or more, of `size` (height, width)."""
    if len(images) < 2 or images.size != size:
        raise UserError(
            f"{images.name} holds {len(images):,} images of {images.size[0]} x {images.size[1]} "
            f"px, but at least two of {size[0]} x {size[1]} px are needed: give images of the "
            "reference's resolution"
        )


def check_same_data(
    trained: DataAbout | None, pack: str, sha256: str, samples: Path, across: str | None
) -> list[str]:
    """Raise UserError if the samples' model was trained on another pack than the reference's.

    `pack` and `sha256` (of its images) are the reference's. A distance to images of another recipe
    would measure the recipes; if `across` names the pack it is allowed, and a note is returned.
    Samples that do not say what they were trained on (another program's) are taken as they are.
    """
    if across not in (None, pack):
        raise UserError(f"across={across} is not the reference's pack: give across={pack}")
    if trained is None or (trained.sha256 and trained.sha256.images == sha256):
        return []
    if trained.sha256 is None:
        raise UserError(
            f"samples {samples} are of imported weights that do not name their pack: import them "
            "again with data.path=PACK (or record=FILE), and sample again"
        )
    training = f"{trained.name} ({trained.sha256.images[:8]}…)"
    reference = f"{pack} ({sha256[:8]}…)"
    if across is None:
        raise UserError(
            f"samples {samples} are of a model trained on {training}, the reference is of "
            f"{reference}: score them against the pack that the model was trained on, or give "
            f"across={pack}"
        )
    return [
        f"the model was trained on {training}, the reference is of {reference}: the distances "
        "measure the difference of these image sets too"
    ]


def check_same_recipe(images: Record, pack: str, path: Path, across: str | None) -> list[str]:
    """Raise UserError if a pack is compared with one of another recipe or resolution.

    `images` is its record, `pack` the name of the reference's; `across` as above.
    """
    if images.name.rpartition("_")[2] == pack.rpartition("_")[2]:
        return []
    if across is None:
        raise UserError(
            f"images {path} are {images.name}, the reference is of {pack}: compare image sets of "
            f"one recipe, or give across={pack}"
        )
    return [
        f"the images are {images.name}, the reference is of {pack}: the distances measure the "
        "difference of these recipes too"
    ]


def check_reference(reference: Reference, record: Record, extractor: str, path: Path) -> None:
    """Raise UserError if the reference says that it is of another pack or extractor."""
    check_extractor(reference, extractor, path)
    expected = {"pack_sha256": record.sha256.images, "num_images": record.num_images}
    if any(getattr(reference, k) not in (None, v) for k, v in expected.items()):
        raise UserError(
            f"reference {path} is of pack {str(reference.pack_sha256)[:8]}… "
            f"({reference.num_images:,} images), not of {record.sha256.images[:8]}… "
            f"({record.num_images:,}): make it again with `python -m pipeline.reference`"
        )


def check_extractor(reference: Reference, extractor: str, path: Path) -> None:
    """Raise UserError if the statistics are not those of `extractor`'s features."""
    width = KINDS[extractor].width
    if reference.extractor not in (None, extractor) or len(reference.mu) != width:
        by = reference.extractor or f"a network with {len(reference.mu):,} features"
        raise UserError(
            f"reference {path} is by {by}, not {extractor} ({width:,} features): give the same "
            "evaluate.extractor, or make it again with `python -m pipeline.reference`"
        )


def check_numbers(settings: Settings, num_samples: int, num_real: int | None) -> None:
    """Raise UserError if there are too few images for a metric that is asked for.

    `num_real` is None if there are only statistics of the real images.
    """
    num = num_samples if num_real is None else min(num_samples, num_real // 2)
    neighbours = settings.prc_neighbourhood if "prc" in settings.metrics else 1
    if num_real is not None and num <= neighbours:
        raise UserError(
            f"{num_samples} samples and {num_real} real images give {num} on each side, but more "
            f"than {neighbours} are needed: use more (or a smaller evaluate.prc_neighbourhood)"
        )
    if num_real is None and not {"fid", "isc"} & set(settings.metrics):
        raise UserError(
            f"evaluate.metrics={list(settings.metrics)} needs real images, and the reference holds "
            "statistics alone: give images, or the metric fid"
        )
    if "isc" in settings.metrics and num_samples < settings.isc_splits:
        raise UserError(
            f"evaluate.isc_splits={settings.isc_splits} is more than the {num_samples} samples: "
            "lower it or sample more"
        )


def labels_beside(samples: Path, num: int, num_classes: int) -> np.ndarray | None:
    """Labels of the samples in a folder; None without labels.npy, or without classes."""
    file = samples / "labels.npy"
    return read_labels(file, num, num_classes) if file.exists() else None


# --- any images against any reference ----------------------------------------------------------


def read_any(config: Config, path: Path, reference: Path, across: str | None) -> Inputs:
    """Any images against any reference; raises UserError for the first thing that does not fit.

    The reference is a file of statistics, images, or both (ADM's .npz with `arr_0`).
    """
    # Images and reference, of one size
    images = open_images(path)
    statistics, real = open_reference(reference, config.evaluate.extractor)
    if statistics:
        check_extractor(statistics, config.evaluate.extractor, reference)
    size = real.size if real else images.size
    if statistics and statistics.resolution:
        size = (statistics.resolution,) * 2
    check_sizes(images, size)
    if real:
        check_sizes(real, size)
    how: dict[str, object] = {"images": path.name, "num": len(images)}
    data = None
    if (home(path) / "sample.json").is_file():
        how, data = read_about(home(path))
    # Origin of both sides
    record, origin = pack_record(home(reference)), pack_record(home(path))
    sha256 = record.sha256.images if record else statistics and statistics.pack_sha256
    name = record.name if record else (statistics and statistics.data) or reference.name
    notes = check_same_data(data if sha256 else None, name, str(sha256), path, across)
    notes += check_same_recipe(origin, name, path, across) if origin and sha256 else []
    notes += notes_on_origin(statistics, reference, config.evaluate.extractor) if statistics else []
    notes += [*images.notes, *notes_on_labels(path), *(real.notes if real else ())]
    check_numbers(config.evaluate, len(images), len(real) if real else None)
    # The reference's part of the protocol
    counts: dict[str, Any] = {}
    if statistics:
        counts = counts_of(statistics)
    elif real:
        counts = {"num_images": len(real), "pack_sha256": sha256, "flipped": False}
    about = ReferenceAbout(file=reference.name, resolution=size[0], **counts)
    return Inputs(images, None, how, real, None, [], statistics, about, notes)


def open_reference(path: Path, extractor: str) -> tuple[Reference | None, ImageSet | None]:
    """The statistics and the images that a reference has; raises UserError if it has neither."""
    if path.is_dir() or path.suffix not in STATISTICS:
        return None, open_images(path)
    images = npz_images(path) if path.suffix == ".npz" else None
    real = None if images is None else of_array(f"reference {path}", images)
    if real and not has_statistics(path):
        return None, real
    return load_reference(path, extractor), real


def has_statistics(path: Path) -> bool:
    """Whether an .npz that was opened before holds `mu` too."""
    with np.load(path, allow_pickle=False) as data:
        return "mu" in data


def pack_record(folder: Path) -> Record | None:
    """The record in the manifest of a pack folder; None if `folder` is not a pack."""
    if not (folder / "manifest.json").is_file():
        return None
    return Record.parse_if_any(read_json(folder / "manifest.json"))
