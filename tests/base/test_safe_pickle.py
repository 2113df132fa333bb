"""Pickles of arrays come back whole; pickles of anything else come to nothing."""

import copyreg
import io
import os
import pickle
import struct
import tracemalloc
from collections import OrderedDict
from typing import Any

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.base.errors import UserError
from pipeline.base.safe_pickle import load_arrays
from tests.array_sets import python2_batch


def load(content: bytes) -> Any:
    return load_arrays(io.BytesIO(content), "batch_7")


def assert_same(got: Any, wanted: Any) -> None:
    """Equal in value, type, dtype, shape and memory order."""
    if isinstance(wanted, np.ndarray | np.generic):
        assert type(got) is type(wanted) and got.dtype == wanted.dtype
        np.testing.assert_array_equal(got, wanted)
        if isinstance(wanted, np.ndarray) and wanted.flags.f_contiguous:
            assert got.flags.f_contiguous
    elif isinstance(wanted, dict):
        assert list(got) == list(wanted)
        for key in wanted:
            assert_same(got[key], wanted[key])
    elif isinstance(wanted, list | tuple):
        assert type(got) is type(wanted) and len(got) == len(wanted)
        for one, other in zip(got, wanted, strict=True):
            assert_same(one, other)
    else:
        assert type(got) is type(wanted)
        assert got == wanted or got != got


# --- round trips -------------------------------------------------------------------------------

DTYPES = st.one_of(
    arrays.boolean_dtypes(),
    arrays.integer_dtypes(endianness="?"),
    arrays.unsigned_integer_dtypes(endianness="?"),
    arrays.floating_dtypes(endianness="?"),
)
ARRAYS = arrays.arrays(DTYPES, arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=9),
    st.binary(max_size=300),
    ARRAYS,
    ARRAYS.map(np.asfortranarray),
    ARRAYS.map(lambda array: array.T[..., ::2] if array.ndim else array),
    ARRAYS.filter(lambda array: array.size > 0).map(lambda array: array.flat[0]),
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(st.one_of(st.text(max_size=5), st.integers()), inner, max_size=4),
    ),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(VALUES, st.integers(0, 5))
def test_round_trip(value: Any, protocol: int) -> None:
    assert_same(load(pickle.dumps(value, protocol)), value)


def test_permuted_axes_of_protocol_5() -> None:
    array = np.arange(24).reshape(2, 3, 4).transpose(1, 0, 2)
    assert_same(load(pickle.dumps(array, 5)), array)


def test_names_of_numpy_1() -> None:
    wanted = {"a": np.arange(6, dtype=">f4").reshape(2, 3), "b": np.float16(0.5)}
    for protocol in (2, 3):
        content = pickle.dumps(wanted, protocol)
        assert b"numpy._core" in content
        assert_same(load(content.replace(b"numpy._core", b"numpy.core")), wanted)


def test_arrays_are_read_only_views() -> None:
    for protocol in (3, 5):
        array = load(pickle.dumps(np.zeros(5), protocol))
        assert not array.flags.writeable and not array.flags.owndata


def test_what_is_shared_stays_shared() -> None:
    value: Any = [np.zeros(2)]
    for _ in range(60):  # 2^60 arrays, were each converted by itself
        value = [value, value]
    got = load(pickle.dumps(value))
    assert got[0] is got[1]


def test_byte_keys_become_str() -> None:
    assert load(pickle.dumps({b"data": b"\xff", 3: {b"x": 1}})) == {"data": b"\xff", 3: {"x": 1}}
    with pytest.raises(UserError, match="twice"):
        load(pickle.dumps({b"data": 1, "data": 2}))


def test_python_2_stream() -> None:
    rows = np.random.default_rng(0).integers(0, 256, (3, 3072), dtype=np.uint8)
    content = python2_batch(rows, [6, 9, 0], ["a.png", "b.png", "c.png"])
    wanted = pickle.loads(content, encoding="latin1")
    assert_same(load(content), wanted)
    np.testing.assert_array_equal(load(content)["data"], rows)
    assert load(content)["labels"] == [6, 9, 0]


def test_python_2_text_opcodes() -> None:
    assert load(b"(dp0\nS'label'\np1\nI3\nsS'caf\\xe9'\nL7L\ns.") == {"label": 3, "café": 7}


# --- hostile -----------------------------------------------------------------------------------


class Calls:
    """Pickles as a call of `function(*args)`, and then of __setstate__ where there is a state."""

    def __init__(self, function: Any, *args: Any, state: Any = None) -> None:
        self.call = (function, args, state)

    def __reduce__(self) -> Any:
        return self.call


class Plain:
    """Pickles as NEWOBJ of this class."""


@pytest.fixture
def canary(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Commands that os.system was called with, instead of being run."""
    commands: list[str] = []
    monkeypatch.setattr(os, "system", lambda command: commands.append(command))
    return commands


def refused(content: bytes) -> str:
    with pytest.raises(UserError, match=r"^batch_7 holds .*refused, get the original") as error:
        load(content)
    return str(error.value)


HOSTILE = {
    "GLOBAL": b"cos\nsystem\n(S'id'\ntR.",
    "GLOBAL, protocol 2": b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00id\x85R.",
    "STACK_GLOBAL": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x02id\x85R.",
    "INST": b"(S'id'\nios\nsystem\n.",
    "OBJ": b"(cos\nsystem\nS'id'\no.",
    "NEWOBJ": b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00id\x85\x81.",
    "NEWOBJ_EX": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x02id\x85}\x92.",
    "in a value of a dict": b"\x80\x02}X\x01\x00\x00\x00a}X\x01\x00\x00\x00bcos\nsystem\n"
    b"X\x02\x00\x00\x00id\x85Rss.",
    "popped": b"cos\nsystem\n(S'id'\ntR0N.",
    "through numpy": b"\x80\x04\x8c\x05numpy\x8c\x0blib.os.wasp\x93\x8c\x02id\x85R.",
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE.keys())
def test_calls_are_refused(content: bytes, canary: list[str]) -> None:
    message = refused(content)
    assert "holds os.system" in message or "holds numpy.lib.os.wasp" in message
    assert not canary


def test_the_canary_sings(canary: list[str]) -> None:
    for name in ("GLOBAL", "STACK_GLOBAL", "INST", "OBJ", "popped"):
        pickle.loads(HOSTILE[name])
    assert canary == ["id"] * 5


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (Calls(eval, "1"), "builtins.eval"),
        (Calls(getattr, Calls(__import__, "builtins"), "eval"), "builtins.getattr"),
        ([Calls(getattr, "", "join")], "builtins.getattr"),
        (Calls(bytearray, 5), "builtins.bytearray"),
        (Calls(np.load, "x"), "numpy.load"),
        (np.zeros(1).sum, "builtins.getattr"),
        (Plain(), "tests.base.test_safe_pickle.Plain"),
        (torch.zeros(2), "torch._utils._rebuild_tensor_v2"),
        (OrderedDict(a=1), "collections.OrderedDict"),
        (1j, "builtins.complex"),
        ({1, 2}, "builtins.set"),
        (frozenset([1]), "builtins.frozenset"),
        (np.dtype("u1"), "numpy.dtype"),
        (np.ndarray, "numpy.ndarray"),
        (np.ma.masked_array([1]), "numpy.ma._?core._mareconstruct"),
        (np.array([{}], dtype=object), "numpy.dtype\\('O8'\\)"),
        (np.zeros(1, dtype="i4,f8"), "numpy.dtype\\('V12'\\)"),
        (np.zeros(1, dtype="M8[s]"), "numpy.dtype\\('M8'\\)"),
        (np.array(["a"]), "numpy.dtype\\('U1'\\)"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_names_are_refused(value: Any, name: str) -> None:
    content = pickle.dumps({"x": value}, 4)
    with pytest.raises(UserError, match=f"^batch_7 holds {name}, which is not an array or plain"):
        load(content)


def test_getattr_chains_are_refused(canary: list[str]) -> None:
    content = (
        b"c__builtin__\ngetattr\n(c__builtin__\n__import__\n(S'os'\ntRS'system'\ntR(S'id'\ntR."
    )
    assert "__builtin__.getattr" in refused(content)
    assert not canary


def test_persistent_ids_are_refused() -> None:
    for content in (b"Phere\n.", b"\x80\x02X\x01\x00\x00\x00aQ."):
        assert "persistent id" in refused(content)


@pytest.fixture
def extension() -> Any:
    """os.getpid with code 1 in the extension registry, and in the cache of pickles read before."""
    copyreg.add_extension("os", "getpid", 1)
    assert pickle.loads(b"\x80\x02\x82\x01.") is os.getpid
    yield
    copyreg.remove_extension("os", "getpid", 1)


def test_extension_codes_are_refused(extension: None) -> None:
    for code in (b"\x82\x01", b"\x83\x01\x00", b"\x84\x01\x00\x00\x00", b"\x82\x07"):
        assert "extension code" in refused(b"\x80\x02" + code + b")R.")


@pytest.mark.parametrize(
    "content",
    [
        # BUILD with attributes of numpy.dtype, numpy.ndarray, an array, bytes
        b"\x80\x02cnumpy\ndtype\nN}X\x05\x00\x00\x00value\x4b\x01s\x86b.",
        b"\x80\x02cnumpy\nndarray\nN}X\x04\x00\x00\x00make\x4b\x01s\x86b.",
        b"\x80\x02cnumpy\nndarray\nN}X\x0c\x00\x00\x00__setstate__\x4b\x01s\x86b.",
        b"\x80\x02c_codecs\nencode\n}X\x08\x00\x00\x00__code__\x4b\x01sb.",
        b"\x80\x02c__builtin__\nbytes\nJ\xff\xff\xff\x7f\x85R.",
        b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00rot13\x86R.",
    ],
)
def test_stand_ins_cannot_be_changed(content: bytes) -> None:
    with pytest.raises(UserError):
        load(content)
    wanted = {"a": np.arange(4, dtype="u1"), "b": b"\xe9"}
    assert_same(load(pickle.dumps(wanted, 2)), wanted)


DEEP = b")" + b"\x85" * 500_000  # tuples in each other: to hash them ends the process


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02}" + DEEP + b"K\x01s.",  # SETITEM
        b"\x80\x02}(" + DEEP + b"K\x01u.",  # SETITEMS
        b"\x80\x02(" + DEEP + b"K\x01d.",  # DICT
        b"\x80\x04\x8f(" + DEEP + b"\x90.",  # ADDITEMS
        b"\x80\x04(" + DEEP + b"\x91.",  # FROZENSET
    ],
    ids=["SETITEM", "SETITEMS", "DICT", "ADDITEMS", "FROZENSET"],
)
def test_keys_that_are_not_plain_are_refused(content: bytes) -> None:
    assert "builtins.tuple as a key" in refused(content)


def test_numbers_too_long_for_a_message_are_refused() -> None:
    assert load(pickle.dumps(10**600)) == 10**600
    assert "a whole number of more than 255 bytes" in refused(pickle.dumps(10**9000))


def test_names_in_messages_have_no_control_characters() -> None:
    sentence = refused(b"\x80\x04\x8c\x02o\n\x8c\x04\x1b[2J\x93.")
    assert sentence.startswith(r"batch_7 holds o\n.\x1b[2J, which")


def claimed(shape: tuple[Any, ...], raw: bytes, dtype: str = "u1") -> bytes:
    """A pickled array that claims `shape`."""
    reconstruct = np.zeros(1).__reduce__()[0]
    state = (1, shape, np.dtype(dtype), False, raw)
    return pickle.dumps(Calls(reconstruct, np.ndarray, (0,), b"b", state=state), 3)


@pytest.mark.parametrize(
    "content",
    [
        claimed((10**15,), b"abc"),
        claimed((10**15, 10**15), b"", "f8"),
        claimed((-1, -3), b"abc"),
        claimed((3.0,), b"abc"),
        claimed((True, 3), b"abc"),
        claimed((2,), b"abc"),
        claimed((3,), b"abc", "f4"),
        b"\x80\x04\x8e" + struct.pack("<Q", 10**15) + b"abc.",  # BINBYTES8
        b"\x80\x05\x96" + struct.pack("<Q", 10**15) + b"abc.",  # BYTEARRAY8
        b"\x80\x02Nr" + struct.pack("<I", 2**31 - 1),  # LONG_BINPUT, cut off
    ],
)
def test_claimed_sizes(content: bytes) -> None:
    with pytest.raises(UserError, match=r"^batch_7 is damaged or not a pickle"):
        load(content)


def test_claims_take_no_memory() -> None:
    claims = (
        b"\x8e" + struct.pack("<Q", 2**29),  # BINBYTES8
        b"\x96" + struct.pack("<Q", 2**29),  # BYTEARRAY8
        b"Nr" + struct.pack("<I", 2**26),  # LONG_BINPUT
        b"\x8b" + struct.pack("<i", 2**29),  # LONG4
    )
    tracemalloc.start()
    for claim in claims:
        with pytest.raises(UserError):
            load(b"\x80\x05" + claim + b"abc")
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_every_truncation_is_noticed() -> None:
    for protocol in (0, 2, 4, 5):
        content = pickle.dumps({"data": np.arange(6.0), "labels": [1, 2]}, protocol)
        for size in range(len(content)):
            with pytest.raises(UserError):
                load(content[:size])


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_flipped_bytes_raise_nothing_else(data: st.DataObject) -> None:
    content = bytearray(pickle.dumps({"data": np.arange(6.0), "labels": [1, 2]}, 3))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        load(bytes(content))
    except UserError as error:
        assert str(error).startswith("batch_7 ")


def test_endless_nesting() -> None:
    for content in (b"]" * 5000 + b"a" * 4999 + b".", b"]q\x00h\x00a."):
        with pytest.raises(UserError, match="RecursionError"):
            load(content)


def test_no_pickle_at_all() -> None:
    for content in (b"", b"<html>", b"\x93NUMPY", b"version https://git-lfs.github.com/spec/v1\n"):
        with pytest.raises(UserError, match="damaged or not a pickle"):
            load(content)
