"""What an evaluation compares, opened and checked: samples, the pack, its reference."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data import Pack, open_pack
from pipeline.errors import UserError
from pipeline.extractors import Extractor
from pipeline.files import load_npy, read_json
from pipeline.keys import Config
from pipeline.keys import Evaluate as Settings
from pipeline.layout import pack_folder
from pipeline.scores import Reference, load_reference


@dataclass(frozen=True)
class Inputs:
    """What is compared, checked."""

    images: np.ndarray  # samples, uint8 (N,H,W,3)
    labels: np.ndarray | None  # of the samples, int64 (N,)
    how: dict[str, Any]  # how the samples were made
    pack: Pack
    reference: Reference


def read_inputs(config: Config, samples: Path, record: Path, reference: Path) -> Inputs:
    """Open and check everything; raises UserError for the first thing that does not fit."""
    known = read_json(record)
    statistics = load_reference(reference)
    check_reference(statistics, known, config.evaluate.extractor, reference)
    images = load_npy(samples / "images.npy")
    size = known["resolution"]
    if images.dtype != np.uint8 or images.shape[1:] != (size, size, 3) or len(images) < 2:
        raise UserError(
            f"samples {samples} are {images.dtype} {images.shape}, but the pack needs at least two "
            f"uint8 images of {size} x {size} px: sample again with data.resolution={size}"
        )
    labels = read_labels(samples, len(images), len(known["classes"]))
    how = read_json(samples / "sample.json")
    check_same_data(how.get("data"), known, samples)
    pack = open_pack(pack_folder(config), known)
    check_numbers(config.evaluate, len(images), len(pack))
    return Inputs(images, labels, how, pack, statistics)


def check_same_data(trained: dict[str, Any] | None, record: dict[str, Any], samples: Path) -> None:
    """Raise UserError where the samples' model was trained on another pack than the record's.

    A distance to images of another recipe would measure the recipes. Samples that do not say what
    they were trained on (another program's) are taken as they are.
    """
    if trained is None or trained["sha256"] == record["sha256"]:
        return
    if trained["sha256"] is None:
        raise UserError(
            f"samples {samples} are of imported weights that do not name their pack: import them "
            "again with data.path=PACK (or record=FILE), and sample again"
        )
    one, other = (
        f"{r['source']}_{r['resolution']}-{r['recipe']} ({r['sha256']['images'][:8]}…)"
        for r in (trained, record)
    )
    raise UserError(
        f"samples {samples} are of a model trained on {one}, the reference is of {other}: "
        "score them against the pack that the model was trained on"
    )


def check_reference(
    reference: Reference, record: dict[str, Any], extractor: str, path: Path
) -> None:
    """Raise UserError unless the reference is of this pack and by this extractor."""
    found = (reference.pack_sha256, reference.num_images, reference.extractor)
    if found != (record["sha256"]["images"], record["num_images"], extractor):
        raise UserError(
            f"reference {path} is of pack {found[0][:8]}… ({found[1]:,} images) by {found[2]}, not "
            f"of {record['sha256']['images'][:8]}… ({record['num_images']:,}) by {extractor}: "
            "make it again with `python -m pipeline.reference`"
        )


def check_weights(reference: Reference, extractor: Extractor, path: Path) -> None:
    """Raise UserError unless the reference was made with these weights."""
    if reference.weights_sha256 != extractor.weights_sha256:
        raise UserError(
            f"reference {path} was made with weights {reference.weights_sha256[:8]}… of "
            f"{extractor.name}, not {extractor.weights_sha256[:8]}…: give the same "
            "evaluate.weights, or make it again with `python -m pipeline.reference`"
        )


def check_numbers(settings: Settings, num_samples: int, num_real: int) -> None:
    """Raise UserError where there are too few images for a metric that is asked for."""
    num = min(num_samples, num_real // 2)
    neighbours = settings.prc_neighbourhood if "prc" in settings.metrics else 1
    if num <= neighbours:
        raise UserError(
            f"{num_samples} samples and {num_real} real images give {num} on each side, but more "
            f"than {neighbours} are needed: use more (or a smaller evaluate.prc_neighbourhood)"
        )
    if "isc" in settings.metrics and num_samples < settings.isc_splits:
        raise UserError(
            f"evaluate.isc_splits={settings.isc_splits} is more than the {num_samples} samples: "
            "lower it or sample more"
        )
    if not 0 <= settings.seed < 2**32:
        raise UserError(f"evaluate.seed={settings.seed} is not valid: use 0 … 2^32 - 1")


def read_labels(samples: Path, num: int, num_classes: int) -> np.ndarray | None:
    """Labels of the samples; None where there is no labels.npy or all are -1 (no classes)."""
    if not (samples / "labels.npy").exists():
        return None
    labels = load_npy(samples / "labels.npy")
    if labels.shape == (num,) and (labels == -1).all():
        return None
    fits = labels.shape == (num,) and np.issubdtype(labels.dtype, np.integer)
    if not fits or labels.min() < 0 or labels.max() >= num_classes:
        raise UserError(
            f"{samples / 'labels.npy'} does not hold {num} labels of {num_classes} classes: "
            "sample again"
        )
    return np.array(labels, np.int64)
