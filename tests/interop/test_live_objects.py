"""Pickles of live networks are read without running them; anything else comes to nothing."""

import io
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.base.errors import UserError
from pipeline.interop.live_objects import Object, StoredTensor, load_objects, stored_tensors
from tests.interop.live_pickles import (
    Calls,
    Live,
    bombs,
    live_network,
    snapshot,
    storage_bytes,
    tensor,
    their_modules,
    write,
)

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.bool]
STATE = {
    "logvar_fourier.freqs": torch.arange(3.0),
    "unet.enc.8x8_conv.weight": torch.arange(24.0).reshape(2, 3, 2, 2),
    "unet.out_gain": torch.tensor(0.5),
}


@pytest.fixture(autouse=True)
def ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that any run of code in a pickle makes."""
    monkeypatch.setenv("RAN", str(tmp_path / "ran"))
    return tmp_path / "ran"


def network() -> Live:
    return live_network(STATE, Live("Precond", 8, label_dim=0, channel_mult=[1, 2]))


def refused(path: Path) -> str:
    with pytest.raises(UserError) as error:
        load_objects(path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400
    return str(error.value)


# --- what networks hold ------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_network_comes_as_names_arguments_and_tensors(
    protocol: int, tmp_path: Path, ran: Path
) -> None:
    path = write(tmp_path / "a.pkl", snapshot(network()), protocol)
    whole = load_objects(path)
    top = whole["ema"]
    assert type(top) is Object and top.named == "Precond" and top.state["_init_args"] == (8,)
    assert top.state["_init_kwargs"] == {"label_dim": 0, "channel_mult": [1, 2]}
    assert top.state["_modules"]["unet"].state["_modules"]["enc"].named == "ModuleDict"
    stored = stored_tensors(path, top)
    assert stored.keys() == STATE.keys()
    for name, value in STATE.items():
        torch.testing.assert_close(stored[name].tensor(), value, atol=0, rtol=0)
    assert whole["encoder"].named == "StandardRGBEncoder"
    assert whole["dataset_kwargs"] == {"path": "x.zip", "use_labels": True}
    assert not ran.exists()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tensors_of_every_kind_and_layout(dtype: torch.dtype, tmp_path: Path) -> None:
    base = torch.arange(48).reshape(2, 3, 2, 4).to(dtype)
    values = [
        base,
        base[:, 1],
        base.transpose(1, 3),
        base.contiguous(memory_format=torch.channels_last),
    ]
    values += [base[0, 0, 0, 1], base[:0], dtype]
    got = load_objects(write(tmp_path / "a.pkl", values))
    for stored, value in zip(got[:-1], values[:-1], strict=True):
        assert type(stored) is StoredTensor and stored.dtype == dtype
        assert torch.equal(stored.tensor().reshape(value.shape), value)


def test_parameters_share_what_they_shared(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.ones(4))
    first, second = load_objects(write(tmp_path / "a.pkl", [weight, weight]))
    assert first is second


# --- hostile -----------------------------------------------------------------------------------


def placed(place: str, bomb: Any) -> Any:
    """A snapshot with `bomb` somewhere in it."""
    if place == "beside the network":
        return snapshot(network(), more=[bomb])
    if place == "instead of it":
        return bomb
    whole = network()
    block = whole._modules["unet"]._modules["enc"]._modules["8x8_conv"]
    if place == "in a module":
        block.__dict__["hook"] = {"deep": [({"x": bomb},)]}
    elif place == "in arguments":
        whole._init_kwargs["channel_mult"] = bomb
    elif place == "instead of a tensor":
        block.__dict__["_parameters"]["weight"] = bomb
    elif place == "in the bytes of a tensor":
        raw = storage_bytes(1, b"\0" * 4, value=bomb)
        block.__dict__["_parameters"]["weight"] = tensor(raw, (1,), (1,))
    return snapshot(whole)


PLACES = ["beside the network", "instead of it", "in a module", "in arguments"]
PLACES += ["instead of a tensor", "in the bytes of a tensor"]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("which", range(3))
def test_calls_are_refused_by_name(place: str, which: int, tmp_path: Path, ran: Path) -> None:
    named, bomb = list(bombs().items())[which]
    path = write(tmp_path / "a.pkl", placed(place, bomb))
    assert f"a.pkl holds {named}, which is not a part of a network" in refused(path)
    assert not ran.exists()


@pytest.mark.parametrize("place", PLACES)
def test_the_bombs_are_real(place: str, tmp_path: Path, ran: Path) -> None:
    path = write(tmp_path / "a.pkl", placed(place, bombs()["builtins.eval"]))
    raw = storage_bytes(1, b"\0" * 4, value=bombs()["builtins.eval"])
    with their_modules():
        try:
            if place == "in the bytes of a tensor":
                torch.load(io.BytesIO(raw), weights_only=False)
            else:
                pickle.loads(path.read_bytes())
        except Exception:
            assert ran.exists()
    assert ran.exists()


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (Calls(getattr, "", "join"), "builtins.getattr"),
        (Calls(np.load, "x"), "numpy.load"),
        (Calls(torch.load, "x"), "torch.serialization.load"),
        (Calls(torch.hub.load, "x"), "torch.hub.load"),
        (Calls(torch.FloatStorage, 5), "torch.FloatStorage"),
        (torch.nn.Linear(1, 1), "torch.nn.modules.linear.Linear"),
        (torch.zeros(2).to_sparse(), "torch._utils._rebuild_sparse_tensor"),
        (Path("x"), "pathlib.PosixPath"),
        (Calls(set, [(1,)]), "builtins.tuple as a key"),
        (Calls(OrderedDict, [[(1,), 2]]), "builtins.tuple as a key"),
        (Calls(torch._utils._rebuild_tensor_v2, [1], 0, (1,), (1,)), "a tensor in builtins.list"),
    ],
)
def test_other_names_are_refused(value: Any, named: str, tmp_path: Path) -> None:
    assert f"holds {named}, which is not" in refused(write(tmp_path / "a.pkl", {"ema": value}))


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02ctorch._utils\n_rebuild_parameter\n}X\x04\x00\x00\x00makeK\x01sb.",
        b"\x80\x02ctorch.nn.modules.container\nModuleDict\n)\x81K\x01b.",
        b"\x80\x02Phere\n.",
        b"\x80\x02X\x01\x00\x00\x00aQ.",
        b"\x80\x02\x82\x01)R.",
        b"\x80\x04\x8c\x05torch\x8c\x10storage.os.wasp.\x93.",
        b"\x80\x04\x8c\x02o\n\x8c\x04\x1b[2J\x93.",
    ],
)
def test_stand_ins_and_messages_are_not_changed(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.pkl").write_bytes(content)
    assert "\x1b" not in refused(tmp_path / "a.pkl")


# --- damaged -----------------------------------------------------------------------------------


FOUR = b"\0" * 16


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (tensor(storage_bytes(10**15, FOUR), (4,), (1,)), f"{10**15} elements has 16 bytes"),
        (tensor(storage_bytes(5, FOUR), (4,), (1,)), "5 elements has 16 bytes"),
        (tensor(storage_bytes(4, FOUR, length=5), (4,), (1,)), "4 elements has 16 bytes"),
        (tensor(storage_bytes(4, FOUR), (10**15,), (0,)), "in 4 elements"),
        (tensor(storage_bytes(4, FOUR), (10**15,) * 2, (0,) * 2), "in 4 elements"),
        (tensor(storage_bytes(4, FOUR), (2, 2), (2, 2)), "in 4 elements"),
        (tensor(storage_bytes(4, FOUR), (4,), (1,), offset=1), "in 4 elements"),
        (tensor(storage_bytes(4, FOUR), (-4,), (1,)), "a tensor of shape"),
        (tensor(storage_bytes(4, FOUR), (2.0,), (1,)), "a tensor of shape"),
        (tensor(storage_bytes(4, FOUR), (1,) * 9, (1,) * 9), "a tensor of shape"),
        (tensor(storage_bytes(4, FOUR), (2, 2), (1,)), "ValueError"),
        (tensor(b"PK\3\4" + FOUR, (4,), (1,)), "not a storage of torch.save"),
    ],
)
def test_claims_of_more_than_is_there(value: Any, words: str, tmp_path: Path) -> None:
    sentence = refused(write(tmp_path / "a.pkl", {"ema": value}))
    assert "is damaged or not a pickle of a network" in sentence
    assert words in sentence


def test_older_checkpoints_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save({"model": STATE}, path, _use_new_zipfile_serialization=False)
    assert "a.pth is a checkpoint of torch.save in its format before torch 1.6" in refused(path)


def test_claimed_bytes_take_no_memory(tmp_path: Path) -> None:
    (tmp_path / "a.pkl").write_bytes(b"\x80\x04\x8e" + (2**62).to_bytes(8, "little") + b"abc")
    assert "damaged" in refused(tmp_path / "a.pkl")


def test_every_truncation_is_noticed(tmp_path: Path) -> None:
    content = write(tmp_path / "a.pkl", snapshot(network())).read_bytes()
    path = tmp_path / "b.pkl"
    for size in [*range(0, len(content), 97), len(content) - 1]:
        path.write_bytes(content[:size])
        assert "is damaged or not a pickle of a network" in refused(path)


@pytest.fixture(scope="module")
def pickled(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """One pickle for all examples: the next one of an equal network may differ in length."""
    path = tmp_path_factory.mktemp("pickled") / "a.pkl"
    return write(path, snapshot(network())).read_bytes()


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_flipped_bytes_raise_nothing_else(
    pickled: bytes, tmp_path: Path, ran: Path, data: st.DataObject
) -> None:
    content = bytearray(pickled)
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "b.pkl"
    path.write_bytes(bytes(content))
    try:
        whole = load_objects(path)
        if type(whole) is dict and type(whole.get("ema")) is Object:
            stored_tensors(path, whole["ema"])
    except UserError as error:
        assert str(path) in str(error) and "\n" not in str(error)
    assert not ran.exists()


def test_modules_that_are_no_tree_are_refused(tmp_path: Path) -> None:
    shared = Live("MPConv")
    for levels in (2, 60):
        module: Any = shared
        for _ in range(levels):  # 2^60 paths
            outer = Live("Block")
            outer._modules |= {"a": module, "b": module}
            module = outer
        path = write(tmp_path / "a.pkl", module)
        with pytest.raises(UserError, match="modules that do not form a tree"):
            stored_tensors(path, load_objects(path))
    deep: Any = shared
    for _ in range(40):
        outer = Live("Block")
        outer._modules |= {"a": deep}
        deep = outer
    path = write(tmp_path / "a.pkl", deep)
    with pytest.raises(UserError, match="modules that do not form a tree"):
        stored_tensors(path, load_objects(path))
