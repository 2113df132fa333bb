"""Networks that were pickled as live objects, read without executing anything.

EDM's trainers and their relatives pickle the network itself, not its state dict: each object is a
call of a function that would run the source text stored beside it. Here an object becomes an
Object, its class's name and its attributes; the source is not looked at. A tensor becomes a
StoredTensor: where it lies in the bytes of the file. Every name that networks do not need is
refused.
"""

import io
import math
import mmap
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pipeline.base.errors import UserError
from pipeline.base.safe_pickle import ARRAYS, Loader, Name, Refused, check_keys, described
from pipeline.base.text import visible

PROTOCOL = b"\x80"  # the first byte of a pickle, and of no zip
# A storage as torch.save wrote it before its files were zips
MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001
STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
CONTAINERS = ("ModuleDict", "ModuleList", "Sequential")
DIMENSIONS = 8  # of a tensor, at most
DEEPEST = 16  # modules within each other


def is_pickle(path: Path) -> bool:
    """Whether a file begins as a pickle; False if it cannot be read."""
    try:
        with path.open("rb") as stream:
            return stream.read(1) == PROTOCOL
    except OSError:
        return False


def load_objects(path: Path) -> Any:
    """The content of the pickle at `path`: containers, plain values, Objects and StoredTensors.

    Arrays of numpy, devices and dtypes are values that nothing can be done with. Raises UserError
    if the file is damaged, or holds anything else.
    """
    # Without a copy of the whole
    try:
        with (
            path.open("rb") as stream,
            mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content,
        ):
            value = Loader(content, NAMES).load()
    except Refused as error:
        raise UserError(
            f"{path} holds {error}, which is not a part of a network: it was refused, and nothing "
            "in the file was run; get the original file"
        ) from error
    except Exception as error:  # a damaged pickle may raise anything
        raise UserError(
            f"{path} is damaged or not a pickle of a network ({type(error).__name__}: "
            f"{visible(str(error))}): copy it again"
        ) from error

    # A checkpoint, of which that is the heading
    if type(value) is int and value == MAGIC:
        raise UserError(
            f"{path} is a checkpoint of torch.save in its format before torch 1.6, which is not "
            "read: load it where it was made, and save it again with a newer torch"
        )
    return value


# --- stand-ins ---------------------------------------------------------------------------------


class Object:
    """Stand-in for a live object: the name of its class, and its attributes."""

    __slots__ = ("named", "state")

    def __init__(self, class_name: str) -> None:
        self.named = class_name
        self.state: dict[Any, Any] = {}

    def __setstate__(self, state: Any) -> None:
        if type(state) is not dict:
            raise Refused(f"a state of {self.named} that is not a dict")
        self.state = state

    def part(self, attribute: str) -> dict[Any, Any]:
        """A dict among the attributes; empty if there is none."""
        value = self.state.get(attribute)
        return value if type(value) is dict else {}


class StoredTensor(NamedTuple):
    """Stand-in for a tensor: its place in a storage. A tuple, so that no pickle can change it."""

    # The storage
    dtype: torch.dtype
    data: memoryview
    # Place in it, in elements
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def tensor(self) -> Tensor:
        """A copy of the values."""
        if 0 in self.shape:
            return torch.empty(0, dtype=self.dtype)
        flat = torch.frombuffer(bytearray(self.data), dtype=self.dtype)
        return flat.as_strided(self.shape, self.strides, self.offset)


class _Storage(NamedTuple):
    """Stand-in for a storage; without bytes until they are read."""

    dtype: torch.dtype
    length: int  # elements
    data: memoryview = memoryview(b"")


class _StorageLoader(Loader):
    """Unpickler of a file with a single storage."""

    def persistent_load(self, pid: Any) -> _Storage:
        """The storage that the file claims; its bytes follow the pickles."""
        word, kind, _key, _location, length, _view = pid
        if word != "storage" or type(kind) is not Name or type(length) is not int:
            raise Refused("a persistent id")
        return _Storage(STORAGES[kind.named.rpartition(".")[2]], length)


def _persistent(meta: Mapping[str, object]) -> Object:
    """Stand-in for the function that would run the class's source and make an object."""
    if meta["type"] != "class":
        raise Refused(f"a persistent {meta['type']}")
    result = Object(str(meta["class_name"]))
    result.__setstate__(meta["state"] or {})
    return result


def _storage(raw: Any) -> _Storage:
    """Stand-in for the function that loads a file of torch.save from bytes.

    Raises ValueError if it claims another size than is there.
    """
    # Three headings
    stream = io.BytesIO(raw)
    heading = raw[:1] == PROTOCOL
    magic, version, system = (Loader(stream, {}).load() if heading else {} for _ in range(3))
    if (magic, version) != (MAGIC, VERSION) or system.get("little_endian") is not True:
        raise ValueError("bytes that are not a storage of torch.save")

    # What it claims
    storage = _StorageLoader(stream, STORAGE_NAMES).load()
    Loader(stream, {}).load()  # the storage's key again
    if type(storage) is not _Storage:
        raise Refused(f"{described(storage)} instead of a storage")
    length = int.from_bytes(stream.read(8), "little")

    # What is there
    data = memoryview(raw)[stream.tell() :]
    if not storage.length == length == len(data) / storage.dtype.itemsize:
        raise ValueError(f"a storage of {storage.length} elements has {len(data)} bytes")
    return storage._replace(data=data)


def _tensor(
    storage: Any, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any
) -> StoredTensor:
    """Stand-in for a tensor's function; raises ValueError if it claims more than the storage."""
    # Plain numbers
    if type(storage) is not _Storage:
        raise Refused(f"a tensor in {described(storage)}")
    numbers = (offset, *shape, *strides)
    if not all(type(n) is int and n >= 0 for n in numbers) or len(shape) > DIMENSIONS:
        raise ValueError(f"a tensor of shape {shape}")

    # Within the storage
    last = offset + sum((side - 1) * step for side, step in zip(shape, strides, strict=True))
    outside = last >= storage.length or math.prod(shape) > storage.length
    if outside and 0 not in shape:
        raise ValueError(f"a tensor of shape {shape} in {storage.length} elements")
    return StoredTensor(storage.dtype, storage.data, offset, shape, strides)


def _parameter(tensor: Any, *_: Any) -> Any:
    """Stand-in for a parameter's function: its tensor."""
    return tensor


def _items(pairs: Iterable[Any] = ()) -> dict[Any, Any]:
    """Stand-in for a dict of another class."""
    items = list(pairs)
    check_keys(key for key, _ in items)
    return dict(items)


def _set(values: Iterable[Any] = ()) -> set[Any]:
    """Stand-in for set, as protocols 0 … 3 write it."""
    members = list(values)
    check_keys(members)
    return set(members)


def _device(*place: Any) -> str:
    """Stand-in for a device: its name."""
    return ":".join(map(str, place))


def _never(*_: Any) -> Any:
    """Stand-in for a class that is named and not called."""
    raise Refused("a call of a storage or dtype")


def _container(name: str) -> Callable[..., Object]:
    """Stand-in for one of torch's modules that hold others."""
    return lambda *_: Object(name)


STORAGE_NAMES = {(m, name): _never for m in ("torch", "torch.cuda") for name in STORAGES}
NAMES: dict[tuple[str, str], Callable[..., Any]] = {
    **ARRAYS,
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _persistent,
    ("dnnlib.util", "EasyDict"): _items,
    ("collections", "OrderedDict"): _items,
    ("builtins", "set"): _set,
    ("__builtin__", "set"): _set,
    ("torch", "device"): _device,
    ("torch.storage", "_load_from_bytes"): _storage,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    **{("torch", str(dtype).removeprefix("torch.")): _never for dtype in STORAGES.values()},
    **{("torch.nn.modules.container", name): _container(name) for name in CONTAINERS},
}


# --- modules -----------------------------------------------------------------------------------


def stored_tensors(path: Path, network: Object) -> dict[str, Any]:
    """Parameters and buffers of `network` by dotted name, whatever is stored under their names.

    `path` is for messages. Raises UserError if modules are not within each other like a tree.
    """
    # From the outside in
    stored: dict[str, Any] = {}
    waiting, seen = [("", network)], set()
    while waiting:
        prefix, module = waiting.pop()
        if type(module) is not Object or id(module) in seen or prefix.count(".") > DEEPEST:
            raise UserError(f"{path} has modules that do not form a tree: get the original file")
        seen.add(id(module))

        # Its tensors, its modules
        values = module.part("_parameters") | module.part("_buffers")
        stored |= {f"{prefix}{name}": v for name, v in values.items() if v is not None}
        inner = module.part("_modules").items()
        waiting += [(f"{prefix}{name}.", value) for name, value in inner if value is not None]
    return stored
