"""Weights trained by facebookresearch/flow_matching, torchcfm or EDM2, for `pipeline.sample`.

    python -m pipeline.import_weights checkpoint-899.pth OUT.safetensors data.path=PACK
    python -m pipeline.import_weights otcfm_cifar10_weights_step_400000.pt OUT.safetensors
    python -m pipeline.import_weights edm2-img64-s.pkl OUT.safetensors data.path=PACK

reads a checkpoint of flow_matching's image example (interop/flow_matching.py), of torchcfm's
CIFAR-10 example (interop/torchcfm.py) or a network pickle of EDM2 (interop/edm2.py), executes
nothing in it, and writes what our trainer writes. Keys, needed only if the file does not give the
answer:

    weights=ema|plain                     default: the averaged weights, if there are any
    model.head_channels=N, model.heads=N  the attention heads, which do not show in any shape
    data.resolution=N                     px, both axes
    data.path=PACK, record=FILE           the pack it was trained on, or that pack's record

Label k is the k-th of the sorted folder names there (torchvision's ImageFolder) and here (sorted
synsets), so a pack of the same classes names them. Without a pack they are class0000, class0001, …
Guidance starts from another zero: flow_matching's cfg_scale s is our sample.guidance = 1 + s.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pipeline.base.errors import UserError, run_main
from pipeline.base.files import sha256_file
from pipeline.config.load import DEFAULT_FILE, lay, load_yaml, nearest, parsed
from pipeline.config.model_keys import DiscreteUNetKeys, EDM2Keys, Model, UNetKeys
from pipeline.config.older_form import older_section
from pipeline.config.paths import out_file
from pipeline.config.words import lookup, parse_overrides
from pipeline.config.workloads import TOKENS
from pipeline.data.pack import DataAbout, Record
from pipeline.interop import edm2, edm2_network, flow_matching, torchcfm
from pipeline.interop.checkpoint import Peer, State, load
from pipeline.interop.flow_matching_network import (
    Shapes,
    architecture,
    heads,
    our_name,
    our_state,
    resolution_of,
)
from pipeline.interop.live_objects import is_pickle
from pipeline.networks import families
from pipeline.training.weights_file import WeightsAbout, save_weights

KEYS = ("weights", "record", "data.path", "data.resolution", "model.heads", "model.head_channels")
NAMED = 6  # keys of a file that a message names
EXCLUSIVE = (("record", "data.path"), ("model.heads", "model.head_channels"))


# --- the network -------------------------------------------------------------------------------


def read_peer(path: Path, weights: str | None) -> Peer:
    """The checkpoint at `path` with its `weights` (ema, plain; None: ema if there are any).

    Raises UserError about the first problem.
    """
    # A live object
    if is_pickle(path):
        return edm2.read_peer(path, weights)
    # One of the two trainers of checkpoints
    checkpoint = load(path)
    if isinstance(checkpoint, dict):
        if torchcfm.is_torchcfm(checkpoint):
            return torchcfm.read_peer(path, checkpoint, weights)
        if isinstance(checkpoint.get("model"), dict):
            return flow_matching.read_peer(path, checkpoint, weights)

    # Or another file
    whole = isinstance(checkpoint, dict)
    keys = list(checkpoint)[:NAMED] if whole else [type(checkpoint).__name__]
    raise UserError(
        f"{path} has no `model`, `net_model` or `ema_model` with tensors (it holds "
        f"{', '.join(map(str, keys))}): give a checkpoint of {flow_matching.TRAINER}, of "
        f"{torchcfm.TRAINER}, or a network pickle of {edm2.TRAINER}"
    )


def check_fits(peer: Peer, model: Model, num_classes: int) -> State:
    """Our state dict; raises UserError about the first tensor that is missing or does not fit."""
    # Shapes that are needed
    if isinstance(model, EDM2Keys):
        edm2_network.check_sizes(peer, model)
    with torch.device("meta"):
        needed = families.build(model, num_classes).state_dict()
    # Tensors under both names
    names, ours = named(peer, model, list(needed))
    sources = {our: their for their, our in names.items()}
    for name, value in ours.items():
        if name not in needed:
            raise UserError(f"{peer.path} has {sources[name]}, which this network does not have")
        if value.shape != needed[name].shape:
            raise UserError(
                f"{sources[name]} of {peer.path} is {tuple(peer.state[sources[name]].shape)}, but "
                f"its other tensors ask for {tuple(needed[name].shape)}"
            )

    # None may lack
    missing = [name for name in needed if name not in ours]
    if missing:
        raise UserError(
            f"{peer.path} lacks {len(missing)} tensors of this network, among them the one that is "
            f"called {missing[0]} here"
        )
    return ours


def named(peer: Peer, model: Model, needed: list[str]) -> tuple[dict[str, str], State]:
    """Our name of each of the peer's tensors, and the tensors as ours; `needed` are our names.

    A tensor that this network does not have gets a name that is not among them.
    """
    if not isinstance(model, EDM2Keys):
        return {name: our_name(name) for name in peer.state}, our_state(peer.state)
    known = edm2_network.our_names(needed, model, edm2_network.resolution_of(peer))
    names = {name: known.get(name, f"{name} of theirs") for name in peer.state}
    parts = ((names[name], value) for name, value in peer.state.items())
    return names, {name: edm2_network.our_tensor(name, v, model.head_channels) for name, v in parts}


def network_keys(
    peer: Peer, options: Mapping[str, Any]
) -> tuple[dict[str, object], int, int | None]:
    """The `model` section, the number of classes (0: none), and px (None: not known)."""
    # The file says it all
    if peer.trainer == edm2.TRAINER:
        for key in ("model.heads", "model.head_channels", "data.resolution"):
            if key in options:
                raise UserError(f"{key} is given, but {peer.path} says it itself: leave it out")
        return (
            edm2_network.architecture(peer),
            edm2_network.num_classes(peer),
            edm2_network.resolution_of(peer),
        )

    # The shapes say most
    shape = architecture(peer)
    shape |= heads(peer, shape, options)
    conditional = shape["class_conditional"]
    num_classes = Shapes(peer).side("label_emb.weight", 0) - 1 if conditional else 0
    return shape, num_classes, resolution_of(peer, shape)


# --- the data ----------------------------------------------------------------------------------


def data_about(
    path: Path, known_size: int | None, num_classes: int, options: Mapping[str, Any]
) -> DataAbout:
    """The data that the checkpoint at `path` was trained on; without a record of unknown source.

    `known_size`: px by the checkpoint, None if it does not say. Raises UserError if the resolution
    is not known or the record is of other data.
    """
    # A record, if given
    size = options.get("data.resolution", known_size)
    if "record" in options:
        return given_record(Path(str(options["record"])), size, num_classes)
    if "data.path" in options:
        return given_record(Path(str(options["data.path"])) / "manifest.json", size, num_classes)

    # Else the size alone
    if size is None:
        raise UserError(
            f"{path} does not say what resolution it was trained at: give data.resolution=N "
            "in px, or the pack with data.path=PACK"
        )
    names = [f"class{k:04d}" for k in range(num_classes)]
    return DataAbout(
        source="unknown", resolution=size, recipe="unknown", classes=names, sha256=None
    )


def given_record(path: Path, size: int | None, num_classes: int) -> DataAbout:
    """The record at `path`, checked: `num_classes` classes (0: any) and `size` px (None: any)."""
    # The record itself
    record = Record.read(path)
    # It must agree
    if num_classes not in (0, len(record.classes)):
        raise UserError(
            f"{path} has {len(record.classes)} classes, the checkpoint {num_classes}: give its pack"
        )
    if size not in (None, record.resolution):
        raise UserError(
            f"{path} is of {record.resolution} px, the checkpoint of {size}: give its pack, or "
            "data.resolution"
        )
    return DataAbout.of(record)


# --- command line ------------------------------------------------------------------------------


def read_options(words: list[str]) -> dict[str, Any]:
    """The dotted keys of `key=value` words; raises UserError for a key that is not in KEYS."""
    # Word by word
    options = {}
    for word in words:
        key = word.partition("=")[0].lstrip("+")
        tree = parse_overrides([word])
        if key not in KEYS:
            raise UserError(f"unknown key {key}{nearest(key, KEYS)} (known: {', '.join(KEYS)})")
        if lookup(tree, key) not in (None, "auto"):
            options[key] = lookup(tree, key)

    # Words that exclude each other
    for first, second in EXCLUSIVE:
        if first in options and second in options:
            raise UserError(f"{first} and {second} are both given: give one of them")
    if type(size := options.get("data.resolution", 0)) is not int:
        raise UserError(f"data.resolution={size} is not valid: give a whole number of px")
    if options.get("weights") not in (None, "ema", "plain"):
        raise UserError(f"weights={options['weights']} is not valid: use ema or plain")
    return options


def imported(path: Path, options: Mapping[str, Any]) -> tuple[State, WeightsAbout]:
    """Tensors and metadata to write for the checkpoint at `path`."""
    # The network and its data
    peer = read_peer(path, options.get("weights"))
    shape, num_classes, size = network_keys(peer, options)
    data = data_about(path, size, num_classes, options)

    # Its keys as our configuration checks them
    section = {"model": shape, "data": {"source": "train", "resolution": data.resolution}}
    base = {key: value for key, value in load_yaml(DEFAULT_FILE).items() if key != "experiments"}
    model = parsed(lay(base, section), {}).model
    model.check(data.resolution)
    state = check_fits(peer, model, num_classes)
    if peer.trainer == torchcfm.TRAINER:
        assert isinstance(model, UNetKeys)  # the family of this project
        state = torchcfm.sorted_by_kind(state, model)
    return state, weights_about(peer, model, data)


def weights_about(peer: Peer, model: Model, data: DataAbout) -> WeightsAbout:
    """The record that the file of weights will hold."""
    # Where they come from
    origin: dict[str, object] = {"trainer": peer.trainer, "file": peer.path.name}
    origin |= {"sha256": sha256_file(peer.path), "weights": peer.weights, **peer.age}
    origin |= {"stored": peer.stored} if peer.stored != "float32" else {}

    # As a training of ours
    keys: dict[str, object] = {"imported": origin}
    keys["model"] = older_section("model", model.model_dump(mode="json"))
    keys["data"] = {key: getattr(data, key) for key in ("source", "resolution", "recipe")}
    if isinstance(model, DiscreteUNetKeys):
        keys["workload"] = TOKENS
    if peer.label_dropout is not None:
        keys["train"] = {"label_dropout": peer.label_dropout}
    return WeightsAbout(config=keys, record=data.to_json(), images=None, gpu_hours=None, torch=None)


def summary(state: State, about: WeightsAbout) -> str:
    """The imported network, in one line."""
    # Its parts
    model, origin = about.section("model"), about.section("imported")
    data = DataAbout.parse(about.record, "the data")
    classes = f"{len(data.classes)} classes" if model["class_conditional"] else "no classes"
    per_head = model["head_channels"]
    each = f"heads of {per_head} channels" if per_head else f"{model['heads']} heads"
    age = "".join(f", {key} {origin[key]}" for key in ("epoch", "step") if key in origin)
    age += f", {origin['stored']} made float32" if "stored" in origin else ""

    # In one sentence
    return (
        f"imported {sum(value.numel() for value in state.values()):,} parameters "
        f"({origin['weights']} weights{age}): {model['channels']} channels x "
        f"{model['channel_mult']}, {model['blocks']} blocks per level, attention at "
        f"{model['attention_at']} with {each}, {classes}, {data.resolution} px"
    )


def main(argv: list[str]) -> None:
    """Import one checkpoint and print one line about it."""
    if len(argv) < 2 or not argv[1].endswith(".safetensors"):
        raise UserError("give CHECKPOINT.pth and OUT.safetensors, then key=value words")
    source, out, options = Path(argv[0]), Path(argv[1]), read_options(argv[2:])
    out_file(out)
    state, about = imported(source, options)
    save_weights(out, state, about)
    print(f"{summary(state, about)} -> {out}")


if __name__ == "__main__":
    run_main(main)
