"""Weights trained by facebookresearch/flow_matching's image example, for `pipeline.sample`.

    python -m pipeline.import_weights checkpoint-899.pth OUT.safetensors data.path=PACK

reads a `.pth` of that trainer (interop/flow_matching.py) and writes what our trainer writes. Keys,
all optional where the checkpoint answers:

    weights=ema|plain                   default: the averaged weights, where there are any
    model.head_channels=N, model.heads=N  the attention heads, which leave no trace in any shape
    data.resolution=N                   px, both axes
    data.path=PACK, record=FILE         the pack it was trained on, or that pack's record

Label k is the k-th of the sorted folder names there (torchvision's ImageFolder) and here (sorted
synsets), so a pack of the same classes names them. Without a pack they are class0000, class0001, …
Guidance is counted from another zero: its cfg_scale s is our sample.guidance = 1 + s.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.base.errors import UserError, run_main
from pipeline.base.files import sha256_file
from pipeline.config.load import DEFAULT_FILE, load_yaml, nearest, validate
from pipeline.config.model_keys import Model
from pipeline.config.words import lookup, merge, parse_overrides
from pipeline.data.pack import DataAbout, Record
from pipeline.interop.flow_matching import TRAINER, Peer, Shapes, State, architecture, read_peer
from pipeline.networks import weights_file
from pipeline.networks.unet import UNet

KEYS = ("weights", "record", "data.path", "data.resolution", "model.heads", "model.head_channels")
EXCLUSIVE = (("record", "data.path"), ("model.heads", "model.head_channels"))

# That trainer's networks by its --dataset: the architecture that must be found for its heads to be
# believed, and the heads.
ARCHITECTURES: dict[str, tuple[dict[str, Any], dict[str, int]]] = {
    "imagenet": (
        {"channels": 192, "channel_mult": (1, 2, 3, 4), "blocks": 3, "attention_at": (2, 4, 8)},
        {"head_channels": 64},
    ),
    "cifar10": (
        {"channels": 128, "channel_mult": (2, 2, 2), "blocks": 4, "attention_at": (2,)},
        {"heads": 1},
    ),
}

# That trainer's names of the layers, and ours.
RENAMES: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r"^time_embed\.", "time_mlp."),
    (r"^label_emb\.", "label_embedding."),
    (r"^input_blocks\.0\.0\.", "stem."),
    (r"^input_blocks\.(\d{1,4})\.", lambda m: f"encoder.{int(m[1]) - 1}."),
    (r"^middle_block\.", "middle."),
    (r"^output_blocks\.", "decoder."),
    (r"^out\.0\.", "out_norm."),
    (r"^out\.2\.", "out_conv."),
    (r"\.in_layers\.0\.", ".norm1."),
    (r"\.in_layers\.2\.", ".conv1."),
    (r"\.emb_layers\.1\.", ".embed."),
    (r"\.out_layers\.0\.", ".norm2."),
    (r"\.out_layers\.3\.", ".conv2."),
    (r"\.skip_connection\.", ".skip."),
    (r"\.proj_out\.", ".proj."),
    (r"\.op\.", ".conv."),
)


# --- the network -------------------------------------------------------------------------------


def our_name(name: str) -> str:
    """Our name of a tensor that the other trainer calls `name`."""
    for pattern, new in RENAMES:
        name = re.sub(pattern, new, name)
    return name


def our_state(state: Mapping[str, Tensor]) -> State:
    """The other trainer's tensors under our names and shapes, float32."""
    ours = {our_name(name): value.float() for name, value in state.items()}
    for name, value in ours.items():
        if name.endswith((".qkv.weight", ".proj.weight")) and value.dim() == 3:
            ours[name] = value.unsqueeze(-1)  # a 1x1 convolution over pixels, kept as 1-D there
    return ours


def heads(peer: Peer, found: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """`heads` and `head_channels`: from the command line, else by the dataset that `args` names.

    Raises UserError where neither tells, or the network is not that dataset's.
    """
    named = {key: options[f"model.{key}"] for key in ("heads", "head_channels")
             if f"model.{key}" in options}  # fmt: skip
    if not named:
        dataset = str(peer.args.get("dataset"))
        expected, named = ARCHITECTURES.get(dataset, ({}, {}))
        if not named or any(found[key] != value for key, value in expected.items()):
            raise UserError(
                f"no shape in {peer.path} tells the attention heads, and its args (dataset: "
                f"{dataset}) name no known network of these shapes: give model.head_channels=N or "
                "model.heads=N, as its trainer's num_head_channels or num_heads"
            )
    return {"heads": 1, "head_channels": None} | named


def check_fits(peer: Peer, model: Model, num_classes: int) -> State:
    """Our state dict; raises UserError about the first tensor that our network lacks or misses."""
    with torch.device("meta"):
        needed = UNet(model, num_classes).state_dict()
    theirs = {our_name(name): name for name in peer.state}
    ours = our_state(peer.state)
    for name, value in ours.items():
        if name not in needed:
            raise UserError(f"{peer.path} has {theirs[name]}, which this network does not have")
        if value.shape != needed[name].shape:
            raise UserError(
                f"{theirs[name]} of {peer.path} is {tuple(peer.state[theirs[name]].shape)}, but "
                f"its other tensors ask for {tuple(needed[name].shape)}"
            )
    missing = [name for name in needed if name not in ours]
    if missing:
        raise UserError(f"{peer.path} lacks {len(missing)} tensors, first the {missing[0]} of here")
    return ours


# --- the data ----------------------------------------------------------------------------------


def resolution_of(args: Mapping[str, Any]) -> int | None:
    """px as `args` tell: 32 for CIFAR-10, else of a folder NAME_<px> in the data path."""
    if args.get("dataset") == "cifar10":
        return 32
    found = re.findall(r"_(\d{1,4})(?=/|$)", str(args.get("data_path")))
    return int(found[-1]) if found else None


def data_record(peer: Peer, num_classes: int, options: Mapping[str, Any]) -> DataAbout:
    """The pack's record, or what is known without one (source unknown, no sha256).

    Raises UserError where the resolution is not known or the record is of other data.
    """
    size = options.get("data.resolution", resolution_of(peer.args))
    if "record" in options:
        return given_record(Path(str(options["record"])), size, num_classes)
    if "data.path" in options:
        return given_record(Path(str(options["data.path"])) / "manifest.json", size, num_classes)
    if size is None:
        raise UserError(
            f"{peer.path} does not say what resolution it was trained at: give data.resolution=N "
            "in px, or the pack with data.path=PACK"
        )
    names = [f"class{k:04d}" for k in range(num_classes)]
    return DataAbout(
        source="unknown", resolution=size, recipe="unknown", classes=names, sha256=None
    )


def given_record(path: Path, size: int | None, num_classes: int) -> DataAbout:
    """The record at `path`, checked: `num_classes` classes (0: any) and `size` px (None: any)."""
    record = Record.read(path)
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
    options = {}
    for word in words:
        key = word.partition("=")[0].lstrip("+")
        tree = parse_overrides([word])
        if key not in KEYS:
            raise UserError(f"unknown key {key}{nearest(key, KEYS)} (known: {', '.join(KEYS)})")
        if lookup(tree, key) not in (None, "auto"):
            options[key] = lookup(tree, key)
    for one, other in EXCLUSIVE:
        if one in options and other in options:
            raise UserError(f"{one} and {other} are both given: give one")
    if options.get("weights") not in (None, "ema", "plain"):
        raise UserError(f"weights={options['weights']} is not valid: use ema or plain")
    return options


def imported(path: Path, options: Mapping[str, Any]) -> tuple[State, dict[str, Any]]:
    """Tensors and metadata to write for the checkpoint at `path`."""
    peer = read_peer(path, options.get("weights"))
    found = architecture(peer)
    found |= heads(peer, found, options)
    conditional = found["class_conditional"]
    num_classes = Shapes(peer).side("label_emb.weight", 0) - 1 if conditional else 0
    record = data_record(peer, num_classes, options)
    section = {"model": found, "data": {"source": "train", "resolution": record.resolution}}
    base = {key: value for key, value in load_yaml(DEFAULT_FILE).items() if key != "experiments"}
    model = validate(merge(base, section), {}).model
    state = check_fits(peer, model, num_classes)
    origin: dict[str, Any] = {"trainer": TRAINER, "file": path.name, "sha256": sha256_file(path)}
    origin |= {"weights": peer.weights, "epoch": peer.epoch}
    keys = {"model": model.model_dump(mode="json"), "imported": origin}
    keys["data"] = {key: getattr(record, key) for key in ("source", "resolution", "recipe")}
    unknown = dict.fromkeys(("images", "gpu_hours", "torch"))
    return state, {"config": keys, "record": record.to_json(), **unknown}


def summary(state: State, about: Mapping[str, Any]) -> str:
    """What was read, in one line."""
    model, origin, record = about["config"]["model"], about["config"]["imported"], about["record"]
    known = f"{len(record['classes'])} classes" if model["class_conditional"] else "no classes"
    per_head, heads = model["head_channels"], model["heads"]
    return (
        f"imported {sum(value.numel() for value in state.values()):,} parameters "
        f"({origin['weights']} weights, epoch {origin['epoch']}): {model['channels']} channels x "
        f"{model['channel_mult']}, {model['blocks']} blocks a level, attention at "
        f"{model['attention_at']} with "
        f"{f'heads of {per_head} channels' if per_head else f'{heads} heads'}, {known}, "
        f"{record['resolution']} px"
    )


def main(argv: list[str]) -> None:
    """Import one checkpoint and print one line about it."""
    if len(argv) < 2 or not argv[1].endswith(".safetensors"):
        raise UserError("give CHECKPOINT.pth and OUT.safetensors, then key=value words")
    source, out, options = Path(argv[0]), Path(argv[1]), read_options(argv[2:])
    state, about = imported(source, options)
    weights_file.save_weights(out, state, about)
    print(f"{summary(state, about)} -> {out}")


if __name__ == "__main__":
    run_main(main)
