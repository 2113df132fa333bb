"""Network pickles of NVlabs/edm2: the `.pkl` file.

Such a file is a pickled dict: the averaged network as a live object in `ema`, what turns images
into its inputs in `encoder`, and more that is not read. The object says how it was made, so that
nothing is asked for. The networks of EDM, its predecessor, are told apart and refused, and so are
those that work on the latents of an autoencoder.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pipeline.base.errors import UserError
from pipeline.base.safe_pickle import PLAIN, described
from pipeline.base.text import visible
from pipeline.interop.checkpoint import Peer, State, check_tensor
from pipeline.interop.live_objects import Object, StoredTensor, load_objects, stored_tensors

TRAINER = "NVlabs/edm2"
EDM = ("SongUNet", "DhariwalUNet")  # networks of EDM, within what preconditions them
PIXELS = "StandardRGBEncoder"  # an encoder that only scales 0 … 255 to -1 … 1
# How a network is made: arguments without a default, the rest with it, and those of which only one
# value is built here
REQUIRED = ("img_resolution", "img_channels", "label_dim", "model_channels")
OPTIONAL: dict[str, Any] = {
    "channel_mult": [1, 2, 3, 4],
    "num_blocks": 3,
    "attn_resolutions": [16, 8],
    "channels_per_head": 64,
    "dropout": 0,
    "sigma_data": 0.5,
    "logvar_channels": 128,
    "use_fp16": True,  # its precision there; ours is sample.precision
}
BUILT: dict[str, Any] = {
    "channel_mult_noise": None,
    "channel_mult_emb": None,
    "label_balance": 0.5,
    "concat_balance": 0.5,
    "res_balance": 0.3,
    "attn_balance": 0.3,
    "clip_act": 256,
}


def read_peer(path: Path, weights: str | None) -> Peer:
    """The network pickle at `path`, with its constructor arguments in `args`.

    `weights`: ema or None. Raises UserError about the first problem.
    """
    # A pickle with averages
    whole = load_objects(path)
    network = whole.get("ema") if type(whole) is dict else None
    if type(network) is not Object:
        keys = [key for key in whole if type(key) is str] if type(whole) is dict else []
        raise UserError(
            f"{path} has no network `ema` (it holds {visible(', '.join(keys)) or 'something else'})"
            f": give a network pickle of {TRAINER}"
        )
    if weights == "plain":
        raise UserError(f"weights=plain, but {path} holds averaged weights alone: use weights=ema")

    # Of a network that is built here
    check_family(path, network)
    args = arguments(path, network)
    check_pixels(path, args, whole.get("encoder"))
    stored = stored_tensors(path, network)
    dtypes = sorted({name_of(value.dtype) for value in stored.values() if is_tensor(value)})
    state = read_state(path, stored)
    return Peer(path, TRAINER, state, "ema", args, {}, 0.0, ", ".join(dtypes))


def check_family(path: Path, network: Object) -> None:
    """Raise UserError unless the object is EDM2's network within its preconditioning."""
    inner = {getattr(value, "named", "") for value in network.part("_modules").values()}
    if network.named == "Precond" and "UNet" in inner:
        return
    for name in EDM:
        if name in inner:
            raise UserError(
                f"{path} holds {name} under {visible(network.named)}, a network of EDM, which is "
                "not built here: give a network pickle of EDM2, its successor"
            )
    raise UserError(
        f"{path} holds a network of the class {visible(network.named)}, not Precond with a UNet: "
        f"give a network pickle of {TRAINER}"
    )


def arguments(path: Path, network: Object) -> dict[str, Any]:
    """All arguments that the network was made with, defaults included.

    Raises UserError if one is missing, not known, or of a network that is not built here.
    """
    # By name
    places = network.state.get("_init_args", ())
    if type(places) not in (list, tuple):
        places = ()
    given = dict(zip(REQUIRED[:3], places[:3], strict=False)) | network.part("_init_kwargs")
    if len(places) > 3:
        raise UserError(
            f"{path} has a network with {len(places)} arguments without names: this cannot be read"
        )

    # Known, and built here
    for name, value in given.items():
        known = name in {*REQUIRED, *OPTIONAL} or (name in BUILT and value == BUILT[name])
        if not known or not is_plain(value):
            raise UserError(
                f"the network of {path} was made with {visible(str(name))}={shown(value)}, which "
                "is not built here: give another network"
            )
    missing = [name for name in REQUIRED if name not in given]
    if missing:
        raise UserError(
            f"{path} does not say {missing[0]} of its network: give a network pickle of {TRAINER}"
        )
    return OPTIONAL | given


def check_pixels(path: Path, args: Mapping[str, Any], encoder: Any) -> None:
    """Raise UserError unless the network makes images of three colours."""
    named = encoder.named if type(encoder) is Object else None
    if args["img_channels"] != 3 or named not in (None, PIXELS):
        made_by = f", made by {visible(named)}" if named else ""
        raise UserError(
            f"{path} holds a network of {visible(str(args['img_channels']))} channels{made_by}, "
            "which are latents, and this pipeline samples pixels: give a network of pixels, such "
            "as EDM2's at 64 px"
        )


def is_plain(value: Any) -> bool:
    """Whether an argument is a plain value or a list of such."""
    parts = value if type(value) in (list, tuple) else [value]
    return all(type(part) in PLAIN for part in parts)


def shown(value: Any) -> str:
    """An argument for a message: anything but plain values by its type."""
    return visible(str(value)) if is_plain(value) else described(value)


def is_tensor(value: Any) -> bool:
    """Whether a stored value is a tensor."""
    return type(value) is StoredTensor


def name_of(dtype: torch.dtype) -> str:
    """A dtype's name, for example float16."""
    return str(dtype).removeprefix("torch.")


def read_state(path: Path, stored: Mapping[str, Any]) -> State:
    """The tensors in float32; raises UserError about the first that is not one of finite floats."""
    state = {}
    for name, value in stored.items():
        tensor = value.tensor() if is_tensor(value) else value
        check_tensor(path, "ema", visible(name), tensor)
        state[name] = tensor.float()
    return state
