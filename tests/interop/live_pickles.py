"""Network pickles in the layout of EDM's trainers, made by code of our own.

Every object pickles as a call of torch_utils.persistence._reconstruct_persistent_obj with its
class's name, attributes and source text; a module of that name is there while the pickle is made.
The source text, and the function if anybody calls it, make the folder RAN.
"""

import io
import os
import pickle
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

SOURCE = "import os\nos.mkdir(os.environ['RAN'])\n"


class Calls:
    """Pickles as a call of `function(*args)`."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


class EasyDict(dict):
    """A dict of another class."""


def _reconstruct_persistent_obj(meta: Mapping[str, Any]) -> Any:
    """The function that would run the source text."""
    exec(meta["module_src"], {})


@contextmanager
def their_modules() -> Iterator[None]:
    """Modules of the names that the pickles hold, as long as the context lasts."""
    persistence, util = ModuleType("torch_utils.persistence"), ModuleType("dnnlib.util")
    persistence._reconstruct_persistent_obj = _reconstruct_persistent_obj  # type: ignore[attr-defined]
    util.EasyDict = EasyDict  # type: ignore[attr-defined]
    names = {"torch_utils": ModuleType("torch_utils"), "dnnlib": ModuleType("dnnlib")}
    names |= {module.__name__: module for module in (persistence, util)}
    before = dict(sys.modules)
    sys.modules.update(names)
    try:
        yield
    finally:
        for name in names:
            sys.modules.pop(name)
        sys.modules.update({name: before[name] for name in names if name in before})


_reconstruct_persistent_obj.__module__ = "torch_utils.persistence"
EasyDict.__module__ = "dnnlib.util"


def meta(class_name: str, state: Any) -> dict[str, Any]:
    """What the trainers store of an object."""
    kept = {"type": "class", "version": 6, "module_src": SOURCE}
    return kept | {"class_name": class_name, "state": state}


class Plain:
    """A live object that is not a module, such as a loss."""

    def __init__(self, class_name: str, **attributes: Any) -> None:
        self.class_name, self.attributes = class_name, attributes

    def __reduce__(self) -> Any:
        return _reconstruct_persistent_obj, (meta(self.class_name, self.attributes),)


class Live(nn.Module):
    """A live module with the attributes of a persistent class."""

    def __init__(self, class_name: str, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        self.class_name = class_name
        self._init_args, self._init_kwargs = args, kwargs

    def __reduce__(self) -> Any:
        state = {name: v for name, v in self.__dict__.items() if name != "class_name"}
        return _reconstruct_persistent_obj, (meta(self.class_name, state),)


CLASSES = {"unet": "UNet", "model": "SongUNet", "emb_fourier": "MPFourier"}
CLASSES |= {"logvar_fourier": "MPFourier"}
DICTS = ("enc", "dec")


def live_network(state: Mapping[str, Tensor], top: Live) -> Live:
    """`top` with modules below it that have the tensors of `state` by dotted name."""
    for name, value in state.items():
        *path, last = name.split(".")
        module: Any = top
        for part in path:
            if part not in module._modules:
                below: nn.Module = Live(CLASSES.get(part, "Block" if "_" in part else "MPConv"))
                module._modules[part] = nn.ModuleDict() if part in DICTS else below
            module = module._modules[part]
        if last in ("freqs", "phases"):
            module.register_buffer(last, value)
        else:
            setattr(module, last, nn.Parameter(value.clone(), requires_grad=False))
    return top


def snapshot(network: Any, **more: Any) -> dict[str, Any]:
    """What a trainer saves beside the averaged network."""
    loss = Plain("EDM2Loss", P_mean=-0.8, P_std=1.6, sigma_data=0.5)
    encoder = Plain("StandardRGBEncoder", _init_args=(), _init_kwargs={})
    whole = {"encoder": encoder, "dataset_kwargs": EasyDict(path="x.zip", use_labels=True)}
    whole |= {"loss_fn": loss, "scale": np.float32(0.5), "bias": np.zeros(3, np.float32)}
    return EasyDict(whole | {"device": torch.device("cuda:0"), "ema": network} | more)


def write(path: Path, whole: Any, protocol: int = 4) -> Path:
    """`whole` as the pickle at `path`."""
    with their_modules():
        path.write_bytes(pickle.dumps(whole, protocol))
    return path


class _Storage:
    """A storage that the file claims to have."""


class _Pickler(pickle.Pickler):
    claimed: tuple[Any, ...]

    def persistent_id(self, value: Any) -> Any:
        return self.claimed if type(value) is _Storage else None


def storage_bytes(claimed: int, data: bytes, value: Any = None, length: int | None = None) -> bytes:
    """A file of torch.save with one storage of floats that claims a number of elements.

    `value` instead of the storage, `length` instead of the number before the data.
    """
    system = {"protocol_version": 1001, "little_endian": True}
    stream = io.BytesIO()
    for heading in (0x1950A86A20F9469CFC6C, 1001, system):
        pickle.dump(heading, stream, 2)
    pickler = _Pickler(stream, 2, fix_imports=False)
    pickler.claimed = ("storage", torch.FloatStorage, "0", "cpu", claimed, None)
    pickler.dump(_Storage() if value is None else value)
    pickle.dump(["0"], stream, 2)
    stream.write((claimed if length is None else length).to_bytes(8, "little"))
    return stream.getvalue() + data


def tensor(raw: bytes, shape: tuple[int, ...], strides: tuple[int, ...], offset: int = 0) -> Calls:
    """A tensor in the storage of `raw`."""
    storage = Calls(torch.storage._load_from_bytes, raw)
    return Calls(torch._utils._rebuild_tensor_v2, storage, offset, shape, strides, False, {})


def bombs() -> dict[str, Calls]:
    """Objects that make the folder RAN when they are unpickled without care, by their name."""
    folder = os.environ["RAN"]
    return {
        f"{os.system.__module__}.system": Calls(os.system, f"mkdir {folder}"),
        "builtins.eval": Calls(eval, f"__import__('os').mkdir({folder!r})"),
        "builtins.exec": Calls(exec, SOURCE),
    }
