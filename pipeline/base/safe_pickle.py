"""Arrays out of pickle files, without running anything that such a file names.

A pickle is a program: it names functions and has them called. Here every name that numpy's arrays
need stands for a piece of this module, which keeps dtype, shape and bytes, and every other name is
refused. The names are those of numpy 1 and 2, pickle protocols 0 … 5, and Python 2. Readers of
other pickles give Loader a table with stand-ins of their own.
"""

import math
import pickle
import re
from collections.abc import Callable, Iterable, Mapping
from typing import IO, Any, ClassVar, NamedTuple

import numpy as np

from pipeline.base.errors import UserError
from pipeline.base.text import visible

PLAIN = (str, bytes, int, float, bool, type(None))
# Keys and members on the stack, as opcodes of dicts and sets find them
KEYS_OF: dict[bytes, Callable[[list[Any]], list[Any]]] = {
    pickle.SETITEM: lambda stack: stack[-2:-1],
    pickle.SETITEMS: lambda stack: stack[::2],
    pickle.DICT: lambda stack: stack[::2],
    pickle.ADDITEMS: lambda stack: stack,
    pickle.FROZENSET: lambda stack: stack,
}
NUMBERS = r"[biuf]\d+"  # dtypes: bool, int, uint, float, with the size in bytes


def load_arrays(stream: IO[bytes], file_name: str) -> Any:
    """The containers, plain values and numpy arrays of the first pickle in `stream`.

    Arrays are read-only views of the bytes read. Python 2's str come as str (latin1), keys that
    are bytes too, a bytearray as bytes. `file_name` is for messages. Raises UserError if the pickle
    is damaged, or holds anything except dict, list, tuple, str, bytes, int, float, bool, None and
    arrays or scalars of numbers.
    """
    # Arrays or nothing
    try:
        return _finished(Loader(stream, ARRAYS).load(), {})
    except Refused as error:
        raise UserError(
            f"{file_name} holds {error}, which is not an array or plain container: it was refused, "
            "get the original file"
        ) from error
    except Exception as error:  # a damaged pickle may raise anything
        raise UserError(
            f"{file_name} is damaged or not a pickle ({type(error).__name__}: {error}): "
            "get the original file"
        ) from error


class Refused(Exception):
    """A name that a pickle holds and that nothing stands for, without control characters."""

    def __init__(self, name: str) -> None:
        super().__init__(visible(name))


class Name(NamedTuple):
    """The stand-in for a name. A tuple, so that the pickle cannot set any attribute of it."""

    # Name and stand-in
    named: str
    make: Callable[..., Any]

    def __call__(self, *args: Any) -> Any:
        return self.make(*args)


def check_keys(values: Iterable[Any]) -> None:
    """Raise Refused about the first that is not a plain value.

    Before they are hashed: to hash a tuple of tuples, a million deep, ends the process.
    """
    for value in values:
        if type(value) not in PLAIN:
            raise Refused(f"{described(value)} as a key")


def _checked(action: Callable[..., None], keys: Callable[[list[Any]], list[Any]]) -> Any:
    """An opcode's `action` after a check of the `keys` that it finds on the stack."""

    def checked(loader: "Loader") -> None:
        check_keys(keys(loader.stack))
        action(loader)

    return checked


Names = Mapping[tuple[str, str], Callable[..., Any]]  # stand-ins by module and name


class Loader(pickle._Unpickler):
    """Unpickler that knows the names it is given, and no other. Python 2's str come as str.

    It is Python's own implementation: the one in C fills gigabytes if a damaged byte reads as a
    place in its memo.
    """

    # Of Python's implementation
    read: Callable[[int], bytes]
    append: Callable[[Any], None]
    stack: list[Any]
    dispatch: ClassVar[dict[int, Callable[..., None]]] = dict(pickle._Unpickler.dispatch)

    def __init__(self, stream: Any, names: Names) -> None:
        super().__init__(stream, encoding="latin1")
        self.names = names

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for `module.name`; raises Refused if there is none."""
        if (module, name) not in self.names:
            raise Refused(f"{module}.{name}")
        return Name(f"{module}.{name}", self.names[module, name])

    def persistent_load(self, pid: Any) -> Any:
        """Refuse objects that lie outside the pickle."""
        raise Refused("a persistent id")

    def get_extension(self, code: int) -> None:
        """Refuse names by number: the process may know them already, from another pickle."""
        raise Refused(f"extension code {code}")

    def load_bytearray8(self) -> None:
        """Read a bytearray as bytes: pickle fills one of the size claimed before it reads any."""
        size = int.from_bytes(self.read(8), "little")
        self.append(self.read(size))

    def load_long4(self) -> None:
        """Refuse numbers so long that writing them in a message fails."""
        raise Refused("a whole number of more than 255 bytes")

    def load_newobj(self) -> None:
        """Make an object from its class: a call of the stand-in."""
        args = self.stack.pop()
        self.append(self.stack.pop()(*args))

    def load_build(self) -> None:
        """Give a stand-in its state; no attribute of anything is set."""
        state = self.stack.pop()
        if not hasattr(type(self.stack[-1]), "__setstate__"):
            raise Refused(f"a state of {described(self.stack[-1])}")
        self.stack[-1].__setstate__(state)

    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8
    for opcode, keys in KEYS_OF.items():
        dispatch[opcode[0]] = _checked(dispatch[opcode[0]], keys)
    dispatch[pickle.LONG4[0]] = load_long4
    dispatch[pickle.NEWOBJ[0]] = load_newobj
    dispatch[pickle.BUILD[0]] = load_build


def described(value: Any) -> str:
    """The name of a stand-in, or the type of any other value."""
    return str(getattr(value, "named", f"builtins.{type(value).__name__}"))


# --- stand-ins ---------------------------------------------------------------------------------


class _Dtype:
    """Stand-in for numpy.dtype."""

    # The real type
    __slots__ = ("value",)
    named = "numpy.dtype"

    def __init__(self, code: str, *_: Any) -> None:
        if not re.fullmatch(NUMBERS, code):
            raise Refused(f"numpy.dtype({code!r})")
        self.value = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.value = self.value.newbyteorder(state[1])


class _Array:
    """Stand-in for numpy.ndarray and numpy's scalars; without a value until its state is read."""

    # The real array
    __slots__ = ("value",)
    named = "numpy.ndarray"

    def __init__(self, *_: Any) -> None:
        self.value: Any = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _version, shape, dtype, fortran, raw = state
        self.value = _array(raw, dtype, shape, "F" if fortran else "C")


def _array(raw: Any, dtype: _Dtype, shape: tuple[int, ...], order: Any) -> np.ndarray:
    """A read-only array on `raw`; raises ValueError if `shape` claims another size."""
    # Older text as bytes
    if isinstance(raw, str):  # Python 2
        raw = raw.encode("latin1")

    # Only the claimed size
    claimed = math.prod(shape) * dtype.value.itemsize
    if not all(type(side) is int and side >= 0 for side in shape) or claimed != len(raw):
        raise ValueError(f"an array of shape {shape} has {len(raw)} bytes")

    # Nobody changes it
    array: np.ndarray = np.ndarray(shape, dtype.value, buffer=raw, order=order)
    array.flags.writeable = False
    return array


def _from_buffer(raw: Any, dtype: _Dtype, shape: Any, order: str, axes: Any = None) -> _Array:
    """Stand-in for the function that protocol 5 names; order K: `shape` in the order `axes`."""
    result = _Array()
    result.value = _array(raw, dtype, shape, "C" if order == "K" else order)
    if axes is not None:
        result.value = result.value.transpose(axes)
    return result


def _scalar(dtype: _Dtype, raw: Any) -> _Array:
    """Stand-in for the function that makes numpy's scalars."""
    result = _Array()
    result.value = _array(raw, dtype, (), "C")[()]
    return result


def _encode(text: str, encoding: str) -> bytes:
    """Stand-in for _codecs.encode, as protocols 0 … 2 of Python 3 write bytes."""
    if encoding != "latin1":
        raise Refused(f"_codecs.encode to {encoding!r}")
    return str.encode(text, "latin1")


def _no_bytes() -> bytes:
    """Stand-in for bytes without arguments, as protocols 0 … 2 of Python 3 write b""."""
    return b""


ARRAYS: Names = {
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _Array,
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,
    ("numpy._core.numeric", "_frombuffer"): _from_buffer,
    ("_codecs", "encode"): _encode,
    ("builtins", "bytes"): _no_bytes,
    ("__builtin__", "bytes"): _no_bytes,
}


# --- from stand-ins to arrays ------------------------------------------------------------------


def _finished(value: Any, done: dict[int, Any]) -> Any:
    """`value` with arrays instead of stand-ins; `done` by id keeps shared parts shared."""
    if type(value) in PLAIN:
        return value
    if id(value) not in done:
        done[id(value)] = _converted(value, done)
    return done[id(value)]


def _converted(value: Any, done: dict[int, Any]) -> Any:
    """A container of finished values, or a stand-in's array; raises Refused for anything else."""
    # Containers
    if type(value) is list:
        return [_finished(part, done) for part in value]
    if type(value) is tuple:
        return tuple(_finished(part, done) for part in value)
    if type(value) is dict:
        return _converted_dict(value, done)
    # Arrays
    if type(value) is _Array and value.value is not None:
        return value.value
    raise Refused(described(value))


def _converted_dict(value: dict[Any, Any], done: dict[int, Any]) -> dict[Any, Any]:
    """A dict of finished keys and values; raises ValueError if b"a" and "a" are both keys."""
    result = {
        key.decode("latin1") if type(key) is bytes else _finished(key, done): _finished(part, done)
        for key, part in value.items()
    }
    if len(result) != len(value):
        raise ValueError("a key is there twice, as bytes and as str")
    return result
