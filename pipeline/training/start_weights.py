"""The weights that a new training starts from: `train.start=FILE`.

FILE is a file of weights, our own or imported, or one of our checkpoints. Of a checkpoint the
current weights are taken, where that training was, and not the averages, which lag behind. What
the file holds, by its hash, is part of the training's identity; its place is not.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.base.errors import UserError
from pipeline.base.files import sha256_file
from pipeline.base.json_objects import mapping_at
from pipeline.config.model_keys import kind_of
from pipeline.config.paths import experiment_of
from pipeline.config.schema import Config
from pipeline.config.stages import stage_keys
from pipeline.training.identity import differences
from pipeline.training.weights_file import WeightsAbout, load_weights, read_about

if TYPE_CHECKING:  # torch is loaded for checkpoints alone, and by the ranks
    from torch import Tensor

    from pipeline.training.workload import Workload

ZIP = b"PK\3\4"  # first bytes of what torch.save writes, and of no safetensors file
SHA256 = re.compile(r"[0-9a-f]{64}")
NAMED = 3  # keys of a file that a message names
OTHERS = "or import another program's checkpoint with `python -m pipeline.import_weights`"


@dataclass(frozen=True)
class Start:
    """The file that train.start names."""

    path: Path | None  # None: named by its hash, which does for a training that goes on
    sha256: str  # of its content, hex


class Origin(NamedTuple):
    """Facts that a file says of its weights."""

    config: Mapping[str, Any]  # the keys that their training read
    classes: int | None  # of their data; None: not known
    words: str  # which weights they are
    data: Mapping[str, Any]  # hashes of their data by name


# --- the file ------------------------------------------------------------------------------------


def locate(value: str) -> Path | None:
    """The file that train.start=`value` names; None if `value` is a hash.

    Raises UserError if there is no such file.
    """
    # A file, or a hash
    path = Path(value)
    if path.is_file():
        return path
    if SHA256.fullmatch(value):
        return None

    # What is there instead
    if path.is_dir():
        newest = max(path.glob("step-*.pt"), default=None)
        choice = f"one of its files, the newest is {newest}" if newest else "a file"
        raise UserError(f"train.start={value} is a folder: give {choice}")
    experiment = experiment_of(path)
    first = f"train experiment={experiment} first, or " if experiment else ""
    raise UserError(
        f"train.start={value} is not a file: {first}give a file of weights, a checkpoint, or null"
    )


def check_kept(value: str, written: Iterable[Path]) -> None:
    """Raise UserError if train.start=`value` is a file that this training will write."""
    if Path(value).resolve() in {path.resolve() for path in written}:
        raise UserError(
            f"train.start={value} is a file that this training writes itself: copy it to another "
            "place, or give one of the checkpoints beside it"
        )


def identified(config: Config) -> tuple[Config, Start | None]:
    """`config` with the hash of the file in train.start instead of its place; and the file.

    Raises UserError if the file is absent or cannot be read.
    """
    # Nothing to start from
    value = config.train.start
    if value is None:
        return config, None

    # The content
    path = locate(value)
    try:
        start = Start(path, value if path is None else sha256_file(path))
    except OSError as error:
        raise UserError(
            f"train.start={value} cannot be read ({error.strerror}): give a file that can"
        ) from error
    train = config.train.model_copy(update={"start": start.sha256})
    return config.model_copy(update={"train": train}), start


# --- what it holds -------------------------------------------------------------------------------


def is_checkpoint(path: Path) -> bool:
    """Whether torch.save wrote a file."""
    with path.open("rb") as stream:
        return stream.read(len(ZIP)) == ZIP


def read_checkpoint(path: Path, checked: bool = False) -> dict[str, Any]:
    """One of our checkpoints; `checked`: after every checksum was compared.

    Nothing in it is executed. Raises UserError if it is damaged or of another program.
    """
    from pipeline.training import checkpoint

    state: dict[str, Any] | None = None
    try:
        state = checkpoint.load_checked(path) if checked else checkpoint.load(path)
        assert images_of(state) > 0 and dict(state["net"])
    except Exception as error:  # any damage shows as some exception of the unpickler or zip
        kind = "is damaged or not" if state is None else "is not"
        content = type(error).__name__ if state is None else f"it holds {names_in(state)}"
        raise UserError(
            f"train.start={path} {kind} a checkpoint of this pipeline ({content}): give a "
            f"step-….pt or a weights.safetensors of a training, {OTHERS}"
        ) from error
    return state


def names_in(content: Any) -> str:
    """The first keys of what another program saved, or its type if it has none."""
    keys = [str(key) for key in content] if isinstance(content, dict) else []
    if not keys:
        return f"a {type(content).__name__}"
    return ", ".join(keys[:NAMED]) + (", …" if len(keys) > NAMED else "")


def images_of(state: Mapping[str, Any]) -> int:
    """Images that the training of a checkpoint has seen."""
    images: int = state["step"] * state["config"]["train"]["batch"]
    return images


def read_origin(path: Path) -> Origin:
    """Facts of the weights in a file; raises UserError if it is damaged or of another program."""
    if is_checkpoint(path):
        state = read_checkpoint(path)
        words = f"current weights after {images_of(state):,} images"
        return Origin(state["config"], None, words, state["data"])
    about = read_about(path)
    classes = about.record.get("classes")
    num_classes = len(classes) if isinstance(classes, list) else None
    sha256 = mapping_at(about.record, "sha256")
    return Origin(about.config, num_classes, in_words(about), sha256)


def in_words(about: WeightsAbout) -> str:
    """Which weights a file holds."""
    # Of another program
    if about.images is None:
        trainer = about.section("imported").get("trainer", "another program")
        return f"weights of {trainer}"

    # Averaged or not
    halflife = about.ema_halflife_images
    kind = f"averaged with a half-life of {halflife:,} images" if halflife else "not averaged"
    if about.ema_width is not None:
        kind = f"averaged with a power profile of width {about.ema_width:g}"
    return f"weights after {about.images:,} images, {kind}"


def read_tensors(path: Path, checked: bool = False) -> dict[str, "Tensor"]:
    """The weights in a file by name, on the CPU; raises UserError if it is damaged."""
    if is_checkpoint(path):
        tensors: dict[str, Tensor] = read_checkpoint(path, checked)["net"]
        return tensors
    return load_weights(path)


# --- whether it fits -----------------------------------------------------------------------------


def check_origin(path: Path | None, config: Config, num_classes: int | None) -> None:
    """Raise UserError if the weights in a file are of another network than that of `config`.

    `num_classes` of the data; None: not known yet. Dropout may differ, and so may the images.
    """
    # Keys of the network
    if path is None:
        return
    origin = read_origin(path)
    model = mapping_at(stage_keys(config, "train"), "model")
    saved = mapping_at(origin.config, "model")
    if different := differences(network_keys(saved), network_keys(model), "model."):
        raise UserError(
            f"train.start={path} is of another network: {', '.join(different)}; give these "
            "keys as they are there, or other weights"
        )

    # Classes that it knows
    counts = {origin.classes, num_classes} - {None}
    if model.get("class_conditional") and len(counts) > 1:
        raise UserError(
            f"train.start={path} was trained on {origin.classes:,} classes, but the images "
            f"here are of {num_classes:,}: give weights of {num_classes:,} classes, or images of "
            f"{origin.classes:,}"
        )


def check_normaliser(path: Path | None, data_sha256: Mapping[str, object]) -> None:
    """Raise UserError if the weights in a file see vectors in other units than these data have.

    They bring their normaliser along, and predictions are scored in the units of the data.
    """
    ours = data_sha256.get("normaliser")
    if path is None or ours is None or read_origin(path).data.get("normaliser") == ours:
        return
    raise UserError(
        f"train.start={path} has another normaliser than these documents, in whose units its "
        "predictions would be scored: give weights of a training on the same pack, with the same "
        "concept.scale, or another concept.name with concept.scale=start, which takes theirs"
    )


def network_keys(model: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a model section that say which network it is."""
    unused = {"dropout", "final_dropout", "context_dropout"}
    if model.get("head_channels"):
        unused.add("heads")
    known = {"kind": kind_of(model), **model}
    return {key: value for key, value in known.items() if key not in unused}


def check_tensors(start: Start, workload: "Workload") -> None:
    """Raise UserError unless the weights are those that the workload's network has."""
    import torch

    # The file itself
    if start.path is None:
        raise UserError(
            f"train.start={start.sha256} names a file by its hash, which does only if the training "
            "has a checkpoint: give the file with this sha256"
        )
    tensors = read_tensors(start.path, checked=True)
    with torch.device("meta"):
        needed = workload.build().state_dict()

    # Names and shapes
    for name in {**needed, **tensors}:
        saved, ours = (shape(tensor.get(name)) for tensor in (tensors, needed))
        if saved != ours:
            raise UserError(
                f"train.start={start.path} does not fit: {name} is {saved} there but {ours} here; "
                "give weights of the same network and as many classes"
            )


def shape(tensor: "Tensor | None") -> str:
    """The shape of a tensor in words."""
    return "absent" if tensor is None else " x ".join(map(str, tensor.shape)) or "a number"


def describe(path: Path, sha256: str) -> dict[str, str]:
    """The start of a training as its weights tell it."""
    return {"file": path.name, "sha256": sha256, "weights": read_origin(path).words}
